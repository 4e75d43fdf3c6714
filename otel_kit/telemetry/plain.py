"""Any object as telemetry can hold it, now, while it is as it was; whatever it is, nothing is raised."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from itertools import islice
from types import TracebackType
from typing import Any, Final

from otel_kit.telemetry.limits import MAX_DEPTH, MAX_ITEMS, Allowance, cut, cut_bytes

#: OTLP's integers are signed and have 64 bits (opentelemetry-proto, common.proto, ``AnyValue.int_value``).
_LOWEST: Final = -(2**63)
_BITS: Final = 63
#: Frames of one traceback that are formatted, some 25 KiB of text: each costs a look into a source file.
_MAX_FRAMES: Final = 256


def encodable(text: str) -> str:
    """The text with lone surrogates replaced: one of them makes protobuf refuse the whole request."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def text_of(value: object) -> str:
    """``str(value)``, or words that say whose ``str()`` fails."""
    try:
        text = str(value)
        # A subclass of str may lie about itself in every method.
        return text if type(text) is str else str.__str__(text)
    except Exception as error:  # noqa: BLE001
        return f"<{type(value).__qualname__}, whose str() raises {type(error).__qualname__}>"


def number(value: int) -> int | str:
    """The integer, or its text where it needs more than 64 bits: in decimal as far as Python writes that, else in hex."""
    exact = value if type(value) is int else int.__add__(value, 0)
    if exact.bit_length() <= _BITS or exact == _LOWEST:
        return exact
    try:
        return str(exact)
    except ValueError:  # above sys.get_int_max_str_digits(), where it would take quadratic time
        return cut(f"{exact:#x}")


def measured(value: Any) -> Any:
    """A measured number; as a float where it is an integer that needs more than 64 bits, and a bool as 0 or 1."""
    if not isinstance(value, int):
        return value
    value = int.__add__(value, 0)
    if value.bit_length() <= _BITS:
        return value
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """What an attribute can hold; anything else as its text. Deep, long and cyclic values are cut, and say so."""
    return _plain(value, depth, None)


def _plain(value: Any, depth: int, allowance: Allowance | None) -> Any:
    kind = type(value)
    if allowance is not None and not allowance.take(value if kind is str or kind is bytes else None):
        return "... [cut]"
    if kind is str:
        return encodable(cut(value))
    if value is None or kind is bool or kind is float:
        return value
    try:
        return _of_any_kind(value, depth, allowance or Allowance())
    except Exception:  # noqa: BLE001  # changed by another thread while it was read, or an application's class
        return f"[unreadable {kind.__qualname__}]"


def _of_any_kind(value: Any, depth: int, allowance: Allowance) -> Any:
    if isinstance(value, int):
        return number(value)
    if isinstance(value, str):
        return encodable(cut(str.__str__(value)))
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, (bytes, bytearray)):
        return cut_bytes(bytes(value))
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        if depth == 0:
            return "[cut: nested too deep]"
        length = len(value)
        # With the mark, as many as are left alone: what was cut is not cut again.
        kept = length if length <= MAX_ITEMS else MAX_ITEMS - 1
        if isinstance(value, Mapping):
            pairs = {
                encodable(cut(text_of(key))): _plain(item, depth - 1, allowance)
                for key, item in islice(value.items(), kept)
            }
            return pairs if length == kept else {**pairs, "...": f"[cut {length - kept} items]"}
        items = [_plain(item, depth - 1, allowance) for item in islice(value, kept)]
        return items if length == kept else [*items, f"... [cut {length - kept} items] ..."]
    return encodable(cut(text_of(value)))


def stacktrace(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> str:
    """A traceback as text, cut in the middle; of a stack that is deeper than anybody reads, the innermost frames."""
    try:
        depth, frame = 0, trace
        while frame is not None:
            depth, frame = depth + 1, frame.tb_next
        limit = -_MAX_FRAMES if depth > _MAX_FRAMES else None
        text = "".join(traceback.format_exception(kind, error, trace, limit=limit))
        if limit is not None:
            text = f"... [cut {depth - _MAX_FRAMES} frames] ...\n{text}"
        return encodable(cut(text, keep="both"))
    except Exception as failed:  # noqa: BLE001  # RecursionError near the end of the stack, and what errors hold themselves
        return f"[unreadable traceback of {kind.__qualname__}: {type(failed).__qualname__}]"
