"""What a secret looks like: by the name that stands before it, and by its shape.

`re` holds the interpreter's lock while it searches, so that an exporting thread could hold up the whole application: every
pattern takes time in proportion to its text (no run of characters is entered twice).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

REDACTED: Final = "[redacted]"

# A key is split into words at punctuation and camelCase, and its last words decide, digits at its end left aside.
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
#: The end of the last word: `accesstoken` and `userpassword` too. A `next_page_token` is redacted as well: nothing tells an
#: opaque cursor from a credential, and nobody reads it.
_ENDINGS: Final = (
    "password passwords passwd passphrase passcode secret secrets token authorization credential credentials "
    "cookie cookies"
)
#: The whole last word.
_WORDS: Final = "pwd pass_word auth signature sig ssn cvv cvc pan jwt"
#: The last two words, also when they are written as one.
_PAIRS: Final = (
    "api_key private_key access_key secret_key signing_key encryption_key account_key shared_key master_key auth_key "
    "subscription_key card_number credit_card session_id db_pass smtp_pass user_pass admin_pass root_pass redis_pass "
    "mysql_pass pg_pass postgres_pass ldap_pass mail_pass email_pass ftp_pass proxy_pass key_pass"
)
#: They end like a secret and are none: kinds of signatures and of language model tokens.
_HARMLESS: Final = (
    "function_signature method_signature class_signature type_signature call_signature task_signature celery_signature "
    "code_signature error_signature first_token last_token input_token output_token prompt_token completion_token per_token"
)
_SECRET: Final = (
    *_ENDINGS.split(),
    *(f"_{word}" for word in (*_WORDS.split(), *_PAIRS.split())),
    *(pair.replace("_", "") for pair in _PAIRS.split()),
)
_NOT_SECRET: Final = tuple(f"_{name}" for name in _HARMLESS.split())
#: Every secret's name holds one of these: a text without them is not searched for names.
_HINTS: Final = (
    "pass", "pwd", "secret", "token", "auth", "cookie", "credential", "key", "sig", "ssn", "cvv", "cvc", "pan", "jwt",
    "session", "card",
)  # fmt: skip

# A name and what stands between it and its value. The lookbehind lets a search enter a run of name characters only at its
# start, and the possessive `++` never gives any back: this is what keeps it linear.
_NAMED: Final = re.compile(r"""(?<![\w.-])([\w.-]++)((?:\\*+["'])?[ \t]{0,4}(?::=|=>|={1,3}|:(?!:|//))[ \t]{0,4})""")
_OPENING: Final = re.compile(r"""[bru]?(\\*+)(["'])""")
_CLOSING: Final = {quote: re.compile(rf"\n|(?<!\\)(\\*+){quote}") for quote in "\"'"}
# A value without quotes: a bracketed one up to its bracket, else up to what may follow a value.
_BARE: Final = re.compile(r"(?:[\[({][^\])}\n]*+[\])}]?)?[^\s&;,\"')\]}]*+")
_NOTHING: Final = re.compile(r"(?:null|nil|none|undefined|true|false)(?![^\s&;,\"')\]}])", re.IGNORECASE)
_SCHEME: Final = re.compile(r"(?:bearer|basic|token|digest|apikey|negotiate|aws4-hmac-sha256)[ \t]+", re.IGNORECASE)
_LINE: Final = re.compile(r"[^\r\n]*+")

# What to look for, how to replace it, and pieces of text without which it cannot match: most texts hold none of them, and
# `in` is far cheaper than a search.
_SHAPES: Final[tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...]] = (
    (
        ("PRIVATE KEY",),  # whole, or begun before or after a cut
        re.compile(
            r"(?:-----BEGIN [A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----.*?|(?<=characters\] \.\.\.)[\w+/=\s\\]*+)"
            r"(?:-----END [A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----|\Z)",
            re.DOTALL,
        ),
        REDACTED,
    ),
    (
        ("://",),  # up to the last "@" before the path; a password may hold a "/", but `host:8080/` is no password
        re.compile(
            r"://(?:[^\s/?#\"'<>]*@"
            r"|[^\s/?#:@\[\"'<>]*+:(?!\d{0,5}[/?#])(?:[^\s:@\"'<>]|:(?!//))*@(?:[^\s/?#@\"'<>]*+@)*)"
        ),
        f"://{REDACTED}@",
    ),
    (
        ("earer", "EARER", "asic", "ASIC"),
        # "basic research" is none: a credential has a digit, padding, or a capital inside.
        re.compile(r"\b([Bb]earer|BEARER|[Bb]asic|BASIC)\s{1,4}(?=[\w.~+/-]{0,64}(?:\d|=|[a-z][A-Z]))[\w.~+/=-]{8,}"),
        rf"\1 {REDACTED}",
    ),
    (("eyJ",), re.compile(r"((?<![\w-])(?:\w{0,20}-)?)eyJ[\w-]{5,}+\.[\w-]{5,}+\.[\w-]*+"), rf"\1{REDACTED}"),
    (
        ("AKIA", "ASIA", "AIza", "gh", "xox", "sk", "rk_", "glpat-"),
        re.compile(
            r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}\b|AIza[\w-]{30,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|xox[abprs]-[\w-]{10,}"
            r"|[sr]k_(?:live|test)_\w{10,}|glpat-[\w-]{10,}"
            # "sk-learn" is none: what follows is named, holds a digit, or is one long word.
            r"|sk-(?:(?:proj|ant|svcacct|admin|or)-[\w-]{8,}|(?=[\w-]{0,64}\d)[\w-]{16,}|\w{32,}))"
        ),
        REDACTED,
    ),
)
# Card numbers begin with 3 to 6; times in nanoseconds and most row ids do not.
_CARD: Final = re.compile(r"(?<![\w.-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w-]|\.\d)")


def _luhn(digits: str) -> bool:
    total = 0
    for place, character in enumerate(reversed(digits)):
        number = int(character) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return total % 10 == 0


def _card(match: re.Match[str]) -> str:
    digits = re.sub(r"[ -]", "", match[0])
    return REDACTED if _luhn(digits) else match[0]


def _end_of_quoted(text: str, start: int, slashes: int, quote: str) -> int:
    """Where a quoted value ends, or its line. JSON in JSON puts one backslash before its quotes, and three one deeper."""
    for found in _CLOSING[quote].finditer(text, start):
        before = found[1]
        if before is None:
            return found.start()
        if len(before) < slashes or len(before) % (2 * slashes + 2) == slashes:
            return found.end() - 1 - min(len(before), slashes)
    return len(text)


def _value_place(text: str, named: re.Match[str]) -> tuple[int, int]:
    """From where to where the value after a secret's name is to be replaced; nowhere when both are the same."""
    name, between, start = named[1].lower(), named[2], named.end()
    opening = _OPENING.match(text, start)
    if opening:
        return opening.end(), _end_of_quoted(text, opening.end(), len(opening[1]), opening[2])
    if between == ":" and text[max(0, named.start() - 1) : named.start()] in ("/", "@"):
        return start, start  # a host and its port, or credentials in a URL, which have a rule of their own
    if ":" in between and name.endswith("auth"):
        return start, start  # `auth: started`, `auth:8080`: more often a prefix or a host
    if _NOTHING.match(text, start):
        return start, start
    scheme = _SCHEME.match(text, start) if name.endswith("authorization") else None
    start = scheme.end() if scheme else start
    if ":" in between and name.endswith(
        ("authorization", "cookie")
    ):  # a header: up to the end of its line, or its quote
        quote = text[max(0, named.start() - 1) : named.start()]
        return start, _end_of_quoted(text, start, 0, quote) if quote in _CLOSING else _match_end(_LINE, text, start)
    return start, _match_end(_BARE, text, start)


def _match_end(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    return found.end() if found else start


class SecretFinder:
    """Judges names and hides secrets in texts.

    Args:
        keys: More words; a name that contains one of them, in any case, counts as naming a secret.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._more = tuple(key.lower() for key in keys)
        self._hints = (*_HINTS, *self._more)
        # Keys are few and repeat; values are many and do not.
        self._judged = lru_cache(maxsize=4096)(self._judge)

    def names_secret(self, key: str) -> bool:
        """Whether a value under this key is to be replaced whole."""
        # A key of a megabyte must not stay in the cache.
        return self._judged(key) if len(key) <= 256 else self._judge(key)

    def _judge(self, key: str) -> bool:
        lowered = key.lower()
        if any(word in lowered for word in self._more):
            return True
        if lowered.endswith("session.id"):  # the semantic conventions' name for what is no credential
            return False
        words = [word.lower() for word in _WORD.findall(key)]
        while words and words[-1].isdigit():
            words.pop()
        name = "_" + "_".join(words)
        return name.endswith(_SECRET) and not name.endswith(_NOT_SECRET)

    def hide(self, text: str) -> str:
        """The text with every secret-shaped part replaced."""
        for clues, shape, replacement in _SHAPES:
            for clue in clues:
                if clue in text:
                    text = shape.sub(replacement, text)
                    break
        if "=" in text or ":" in text:
            lowered = text.lower()
            if any(hint in lowered for hint in self._hints):
                text = self._hide_named(text)
        if len(text) >= 13 and _CARD.search(text):
            text = _CARD.sub(_card, text)
        return text

    def _hide_named(self, text: str) -> str:
        parts: list[str] = []
        done = 0
        for named in _NAMED.finditer(text):
            if named.start() < done or not self.names_secret(named[1]):
                continue
            start, end = _value_place(text, named)
            if end > start:
                parts += text[done:start], REDACTED
                done = end
        return "".join((*parts, text[done:])) if parts else text
