"""How much of one value leaves the process: bounds that keep a huge or endless one from costing more than it tells.

What is cut says so, and says how much is missing.
"""

from __future__ import annotations

from typing import Any, Final, Literal

#: Characters of one text. A deep stack trace or a long statement fits; a dumped request body does not.
MAX_TEXT: Final = 32 * 1024
#: Characters of an attribute's key. Real ones have some 20 to 60.
MAX_KEY: Final = 256
#: Items of one list or mapping.
MAX_ITEMS: Final = 128
#: Containers inside containers.
MAX_DEPTH: Final = 8
#: Characters that one nested value may hold in all, an item that is no text counting as `_ITEM`. Bounds per container are
#: not enough: eight levels of 128 items that share their children would be 128 ** 8 visits.
MAX_NESTED: Final = 4 * MAX_TEXT

_ITEM: Final = 16
_MARKER: Final = "\n... [cut {} characters] ...\n"
_MARKER_ROOM: Final = 48
# A cut is moved by at most so much to where a line, else a word, ends. A secret that was cut through would not be
# recognised any more: `postgres://bob:hunt` has no "@", and the rest of a base64 line no header.
_SEAM: Final = 512
_WORD_ENDS: Final = " \t\"',;&"


def cut(text: str, limit: int = MAX_TEXT, keep: Literal["start", "both"] = "start") -> str:
    """The text, or, when it is longer than ``limit``, what fits beside a visible ``... [cut N characters] ...``.

    Args:
        text: Any text; one that is short enough comes back as the very same object.
        limit: Characters of the result, the mark included; at least 64.
        keep: ``start`` keeps the beginning. ``both`` keeps a third from the beginning and two thirds from the end, where
            a stack trace says what went wrong.

    Raises:
        ValueError: ``limit`` is below 64, or ``keep`` is neither of the two.
    """
    if limit < 64:
        raise ValueError(f"limit={limit!r} is not accepted; accepted: 64 characters or more")
    if keep not in ("start", "both"):
        raise ValueError(f"keep={keep!r} is not accepted; accepted: 'start' or 'both'")
    if len(text) <= limit:
        return text
    room = limit - _MARKER_ROOM
    head = _until_a_seam(text[: room if keep == "start" else room // 3])
    tail = "" if keep == "start" else _from_a_seam(text[len(text) - (room - room // 3) :])
    marker = _MARKER.format(len(text) - len(head) - len(tail))
    return head + (marker if tail else marker.rstrip("\n")) + tail


def cut_bytes(raw: bytes, limit: int = MAX_TEXT) -> bytes:
    """The bytes, or, when they are more than ``limit``, the first of them and a mark; at least 64."""
    if len(raw) <= limit:
        return raw
    kept = limit - _MARKER_ROOM
    return raw[:kept] + b"\n... [cut %d bytes] ..." % (len(raw) - kept)


def _until_a_seam(head: str) -> str:
    low = max(0, len(head) - min(_SEAM, len(head) // 2))
    place = head.rfind("\n", low)
    if place < 0:
        place = max(head.rfind(end, low) for end in _WORD_ENDS)
    return head if place < 0 else head[:place]


def _from_a_seam(tail: str) -> str:
    high = min(_SEAM, len(tail) // 2)
    place = tail.find("\n", 0, high)
    if place < 0:
        place = min((found for end in _WORD_ENDS if (found := tail.find(end, 0, high)) >= 0), default=-1)
    return tail[place + 1 :]


class Allowance:
    """What is left of the characters that one nested value may hold."""

    def __init__(self, characters: int = MAX_NESTED) -> None:
        self._left = characters

    def take(self, value: Any) -> bool:
        """Whether there is room for one more item, which is then counted."""
        # Exact types: a subclass of the application's may have a length of its own mind.
        self._left -= _ITEM + (min(len(value), MAX_TEXT) if type(value) in (str, bytes, bytearray) else 0)
        return self._left >= 0
