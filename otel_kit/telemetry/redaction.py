"""Secrets are taken out before anything leaves the process.

Two rules. A value whose *key* names a secret (``password``, ``authorization``, ``api_key`` ...) is replaced whole. Inside every
other text the commonest *shapes* of a secret are replaced: credentials in URLs, ``key=value`` and quoted ``"key": "value"``
pairs, bearer and basic credentials, JSON web tokens, keys of the large vendors, private key blocks, and card numbers that
pass Luhn's check. It runs on the exporting thread, never on the application's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, Status

REDACTED: Final = "[redacted]"

#: A key is split into words at punctuation and camelCase; the *end* of a word decides, so that ``access_token`` and
#: ``userpassword`` match while ``gen_ai.usage.input_tokens`` and ``secretary`` do not.
_SECRET_ENDINGS: Final = (
    "password", "passwd", "passphrase", "secret", "token", "authorization", "cookie", "cookies", "credential",
    "credentials", "apikey", "privatekey", "accesskey", "signature", "ssn", "cvv", "cvc",
)  # fmt: skip
_SECRET_WORDS: Final = frozenset({"pwd", "secrets", "auth", "pan"})
_SECRET_PAIRS: Final = frozenset(
    {("api", "key"), ("private", "key"), ("access", "key"), ("secret", "key"), ("card", "number"), ("credit", "card")}
)
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_NAMES: Final = (
    r"[\w.-]{0,64}?(?:password|passwd|pwd|passphrase|secret|token|api[_-]?key|access[_-]?key|signature|\bsig)"
)
_DEPTH: Final = 8

# What to look for, how to replace it, and a piece of text without which it cannot match: most texts hold none of them,
# and `in` is far cheaper than a search.
_SHAPES: Final[tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...]] = (
    (("://",), re.compile(r"(\w{1,20}://)[^\s/@?#]{1,256}@"), rf"\1{REDACTED}@"),
    (("=",), re.compile(rf"(?i)(?<!\w)({_NAMES})=(?!\s)[^\s&;,\"')\]}}]+"), rf"\1={REDACTED}"),
    (
        ('"', "'"),
        re.compile(rf"(?i)([\"'])({_NAMES}|(?:set-)?cookie|authorization)\1(\s{{0,4}}:\s{{0,4}})([\"'])[^\"']*\4"),
        rf"\1\2\1\3\4{REDACTED}\4",
    ),
    (
        ("earer", "EARER", "asic", "ASIC"),
        # "basic research" is none: a credential has a digit, padding, or a capital inside.
        re.compile(r"\b([Bb]earer|BEARER|[Bb]asic|BASIC)\s+(?=[\w.~+/-]{0,64}(?:\d|=|[a-z][A-Z]))[\w.~+/=-]{8,}"),
        rf"\1 {REDACTED}",
    ),
    (("eyJ",), re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*"), REDACTED),
    (("AKIA", "ASIA"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), REDACTED),
    (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), re.compile(r"\bgh[pousr]_\w{20,}"), REDACTED),
    (("xox",), re.compile(r"\bxox[abprs]-[\w-]{10,}"), REDACTED),
    (("sk_live_", "rk_live_"), re.compile(r"\b[sr]k_live_\w{10,}"), REDACTED),
    (
        ("PRIVATE KEY",),
        re.compile(
            r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,20}PRIVATE KEY-----|\Z)", re.DOTALL
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


class Redactor:
    """Replaces secrets by ``[redacted]``.

    Args:
        keys: More words; a key that contains one of them, in any case, counts as naming a secret.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._more = tuple(key.lower() for key in keys)
        # Keys are few and repeat; values are many and do not.
        self._names_secret = lru_cache(maxsize=4096)(self._judge)

    def _judge(self, key: str) -> bool:
        lowered = key.lower()
        if any(word in lowered for word in self._more):
            return True
        words = [word.lower() for word in _WORD.findall(key)]
        return any(word.endswith(_SECRET_ENDINGS) or word in _SECRET_WORDS for word in words) or any(
            pair in _SECRET_PAIRS for pair in pairwise(words)
        )

    def text(self, text: str) -> str:
        """The text with every secret-shaped part replaced."""
        for clues, shape, replacement in _SHAPES:
            if any(clue in text for clue in clues):
                text = shape.sub(replacement, text)
        if len(text) >= 13 and _CARD.search(text):
            text = _CARD.sub(_card, text)
        return text

    def value(self, key: str, value: Any) -> Any:
        """The value as it may leave; the very same object when there is nothing to hide."""
        if isinstance(value, bool) or value is None or value == "":
            return value
        if self._names_secret(key):
            return REDACTED
        return self._inside(value, _DEPTH)

    def _inside(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, (int, float, bytes)) or value is None:
            return value
        if depth == 0:
            return REDACTED  # deeper than anybody reads, and not looked at
        if isinstance(value, Mapping):
            return {
                k: REDACTED
                if isinstance(k, str) and v is not None and self._names_secret(k)
                else self._inside(v, depth - 1)
                for k, v in value.items()
            }
        if isinstance(value, Sequence):
            return tuple(self._inside(item, depth - 1) for item in value)
        return value

    def attributes(self, attributes: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The attributes as they may leave; the very same object when there is nothing to hide."""
        if not attributes:
            return attributes
        changed = {}
        for key, value in attributes.items():
            clean = self.value(key, value)
            if clean is not value and clean != value:
                changed[key] = clean
        if not changed:
            return attributes
        replaced = BoundedAttributes(attributes={**attributes, **changed}, immutable=True, extended_attributes=True)
        replaced.dropped = getattr(attributes, "dropped", 0)
        return replaced

    def span(self, span: ReadableSpan) -> ReadableSpan:
        """The span as it may leave; the very same object when there is nothing to hide."""
        attributes = self.attributes(span.attributes)
        events = [self._event(event) for event in span.events]
        links = [self._link(link) for link in span.links]
        name, description = self.text(span.name), span.status.description
        clean_description = self.text(description) if description else description
        untouched = (
            attributes is span.attributes
            and all(new is old for new, old in zip(events, span.events, strict=True))
            and all(new is old for new, old in zip(links, span.links, strict=True))
            and name == span.name
            and clean_description == description
        )
        if untouched:
            return span
        return _RedactedSpan(
            span,
            name=name,
            attributes=attributes,
            events=events,
            links=links,
            status=Status(span.status.status_code, clean_description),
        )

    def _event(self, event: Event) -> Event:
        attributes = self.attributes(event.attributes)
        return event if attributes is event.attributes else Event(event.name, attributes, event.timestamp)

    def _link(self, link: Link) -> Link:
        attributes = self.attributes(link.attributes)
        return link if attributes is link.attributes else Link(link.context, attributes)

    def record(self, record: ReadableLogRecord) -> ReadableLogRecord:
        """The log record, redacted in place: by now it belongs to the exporter alone."""
        log = record.log_record
        log.body = self._inside(log.body, _DEPTH)
        log.attributes = self.attributes(log.attributes)
        return record

    def metrics(self, data: MetricsData) -> MetricsData:
        """The metrics as they may leave; the very same object when there is nothing to hide."""
        dirty = False
        resources = []
        for resource in data.resource_metrics:
            scopes = []
            for scope in resource.scope_metrics:
                metrics = []
                for metric in scope.metrics:
                    points = [self._point(point) for point in metric.data.data_points]
                    if any(new is not old for new, old in zip(points, metric.data.data_points, strict=True)):
                        dirty = True
                        data_points: Any = replace(metric.data, data_points=points)  # type: ignore[arg-type]
                        metric = replace(metric, data=data_points)
                    metrics.append(metric)
                scopes.append(replace(scope, metrics=metrics))
            resources.append(replace(resource, scope_metrics=scopes))
        return MetricsData(resource_metrics=resources) if dirty else data

    def _point(self, point: Any) -> Any:
        attributes = self.attributes(point.attributes)
        exemplars = [
            exemplar if filtered is exemplar.filtered_attributes else replace(exemplar, filtered_attributes=filtered)
            for exemplar in point.exemplars
            for filtered in (self.attributes(exemplar.filtered_attributes),)
        ]
        if attributes is point.attributes and all(
            new is old for new, old in zip(exemplars, point.exemplars, strict=True)
        ):
            return point
        return replace(point, attributes=attributes, exemplars=exemplars)


class _RedactedSpan(ReadableSpan):
    """A copy that still tells how much the original had dropped."""

    def __init__(
        self, original: ReadableSpan, *, name: str, attributes: Any, events: Any, links: Any, status: Status
    ) -> None:
        super().__init__(
            name=name,
            context=original.context,
            parent=original.parent,
            resource=original.resource,
            attributes=attributes,
            events=events,
            links=links,
            kind=original.kind,
            status=status,
            start_time=original.start_time,
            end_time=original.end_time,
            instrumentation_scope=original.instrumentation_scope,
        )
        self._original = original

    @property
    def dropped_attributes(self) -> int:
        return self._original.dropped_attributes

    @property
    def dropped_events(self) -> int:
        return self._original.dropped_events

    @property
    def dropped_links(self) -> int:
        return self._original.dropped_links
