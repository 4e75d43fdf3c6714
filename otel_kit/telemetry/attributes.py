"""Attributes as the SDK takes them from the application's thread: whatever they are, nothing is raised and the time is bounded.

The SDK cleans attributes while it holds the span's lock. Left to itself it calls ``str()`` of the application's objects
there and lets through what that raises, follows a list that contains itself until the stack ends, copies a shared one as
often as it is found, and logs one warning for each attribute above its limit. A logging handler that touches the
current span would then wait for the lock that its own thread holds. So the one function that cleans is replaced.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from opentelemetry import attributes as api
from opentelemetry.sdk._logs import LogRecordDroppedAttributesWarning
from opentelemetry.sdk.metrics._internal import instrument, measurement
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Status

from otel_kit.telemetry.limits import MAX_DEPTH, MAX_ITEMS, MAX_KEY, MAX_TEXT, Allowance, cut, cut_bytes
from otel_kit.telemetry.plain import text_of
from otel_kit.telemetry.redaction import SpanCopy

_logger = logging.getLogger(__name__)
_AS_THEY_ARE: Final = frozenset({int, float, bool, type(None)})
_PLAIN: Final = _AS_THEY_ARE | {str, tuple, list, bytes}
#: Since 1.45 one function, which takes a value; before it two, which take its key too and call the first for what is nested.
_SINCE_1_45: Final = "_clean_attribute_value"
_BEFORE: Final = ("_clean_attribute", "_clean_extended_attribute")


def clean(value: Any, max_length: int | None) -> Any:
    """An attribute's value, or a mapping of attributes, as the SDK keeps it: sequences as tuples, objects as their text.

    Args:
        value: Anything.
        max_length: The configured limit of a text's characters, None where there is none.
    """
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is str:
        return _text(value, max_length)
    if isinstance(value, Mapping):  # by now all attributes at once: see `_set_one`
        try:
            return _mapping(value, max_length)
        except Exception:  # noqa: BLE001 - changed by another thread while it was read, or a class of the application's
            return _copied(value, max_length)
    return _nested(value, max_length, MAX_DEPTH, Allowance())


def _copied(attributes: Mapping[Any, Any], max_length: int | None) -> dict[str, Any]:
    try:
        return _mapping(dict(attributes), max_length)
    except Exception:  # noqa: BLE001 - then it holds nothing that can be read
        return {}


def _mapping(attributes: Mapping[Any, Any], max_length: int | None) -> dict[str, Any]:
    """All attributes at once, the common case; however many, for the SDK counts what it drops."""
    return {
        key: item
        if type(item) in _AS_THEY_ARE
        else _text(item, max_length)
        if type(item) is str
        else _nested(item, max_length, MAX_DEPTH, Allowance())
        for key, item in (attributes.items() if all(map(_is_key, attributes)) else _named(attributes))
    }


def _is_key(key: Any) -> bool:
    return type(key) is str and 0 < len(key) <= MAX_KEY


def _named(attributes: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """The items under names that are texts; what has neither name nor text is left out, and the SDK counts it."""
    named = ((key if type(key) is str else _text_or_none(key), item) for key, item in attributes.items())
    return [(cut(key, MAX_KEY), item) for key, item in named if key]


def _text(text: str, max_length: int | None) -> str:
    if max_length is not None and len(text) > max_length:
        return text[:max_length]
    # The exporter's limit, applied where a text that is too long would be held in the queue till then.
    return text if len(text) <= MAX_TEXT else cut(text, keep="both")


def _text_or_none(value: object) -> str | None:
    kind = type(value)
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        return None  # `<object at 0x7f...>` tells nothing; upstream drops it too
    return text_of(value)


def _nested(value: Any, max_length: int | None, depth: int, allowance: Allowance) -> Any:
    try:
        if not allowance.take(value if type(value) is str or type(value) is bytes else None):
            return "... [cut]"
        if isinstance(value, str):
            return _text(str.__str__(value), max_length)
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, (bytes, bytearray)):
            return cut_bytes(bytes(value))
        if isinstance(value, (Mapping, Sequence)):
            return _container(value, max_length, depth, allowance)
        text = _text_or_none(value)
        return None if text is None else _text(text, max_length)
    except Exception:  # noqa: BLE001 - the application's own classes run here, and may raise what they like
        return f"[unreadable {type(value).__qualname__}]"


def _container(value: Any, max_length: int | None, depth: int, allowance: Allowance) -> Any:
    if depth == 0:
        return "[cut: nested too deep]"
    length = len(value)
    # With the mark, as many as are left alone: what was cut is not cut again.
    kept = length if length <= MAX_ITEMS else MAX_ITEMS - 1
    if isinstance(value, Mapping):
        pairs = {
            key: _nested(item, max_length, depth - 1, allowance)
            for key, item in _named(dict(islice(value.items(), kept)))
        }
        return pairs if length == kept else {**pairs, "...": f"[cut {length - kept} items]"}
    items = tuple(_nested(item, max_length, depth - 1, allowance) for item in islice(value, kept))
    return items if length == kept else (*items, f"... [cut {length - kept} items] ...")


def install() -> Callable[[], None]:
    """Have the SDK clean attributes in this way; the function returned takes that back."""
    replaced: list[tuple[Any, str, Any]] = []

    def replace(module: Any, name: str, new: Any) -> None:
        replaced.append((module, name, getattr(module, name)))
        setattr(module, name, new)

    if hasattr(api, _SINCE_1_45):
        replace(api, _SINCE_1_45, clean)
        replace(api.BoundedAttributes, "__setitem__", _set_one(api.BoundedAttributes.__setitem__))
        if hasattr(measurement, _SINCE_1_45):
            replace(measurement, _SINCE_1_45, clean)
    elif all(hasattr(api, name) for name in _BEFORE):
        for name in _BEFORE:
            replace(api, name, _clean_named)
        replace(instrument, "Measurement", _measured)
    else:
        _logger.warning("otel-kit: this SDK has changed inside: attributes of odd types may raise where they are set")
    upstream = logging.getLogger(api.__name__)
    level = upstream.level
    # Dropped attributes are counted on the span and arrive as its dropped_attributes_count.
    upstream.setLevel(logging.ERROR)
    # Where warnings are errors, this one would cost the record.
    warnings.filterwarnings("ignore", category=LogRecordDroppedAttributesWarning)

    def undo() -> None:
        upstream.setLevel(level)
        for module, name, original in reversed(replaced):
            setattr(module, name, original)

    return undo


def _set_one(original: Callable[[Any, str, Any], None]) -> Callable[[Any, str, Any], None]:
    """Setting one attribute calls the same function as setting all of them: a mapping is bounded as a value before that."""

    def set_one(self: Any, key: str, value: Any) -> None:
        if type(value) not in _PLAIN and isinstance(value, Mapping):
            value = _nested(value, self.max_value_len, MAX_DEPTH, Allowance())
        original(self, key, value)

    return set_one


def _clean_named(key: Any, value: Any, max_len: int | None) -> Any:
    """What took its key along before 1.45."""
    if not isinstance(key, str) or not key:
        return None
    return _nested(value, max_len, MAX_DEPTH, Allowance())


def _measured(*parts: Any, **named: Any) -> Any:
    """A measurement before 1.45, which hashes its attributes: what cannot be hashed goes as its text."""
    made = measurement.Measurement(*parts, **named)
    if made.attributes:
        kept = {key: _hashable(item) for key, item in clean(made.attributes, None).items()}
        object.__setattr__(made, "attributes", kept)  # frozen, and copied by nobody yet
    return made


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return cut(text_of(value))
    return value


def bounded(span: ReadableSpan) -> ReadableSpan:
    """An ended span whose names and status are no longer than a text may be; nearly always the very same object.

    Its attributes are bounded where they are set. These texts are not, and would be held in the queue.
    """
    description = span.status.description
    events = span.events
    if _fits(span.name) and (description is None or _fits(description)) and all(_fits(event.name) for event in events):
        return span
    return SpanCopy(
        span,
        name=_fitting(span.name),
        attributes=span.attributes,
        events=[
            event if _fits(event.name) else Event(_fitting(event.name), event.attributes, event.timestamp)
            for event in events
        ],
        links=span.links,
        status=Status(span.status.status_code, None if description is None else _fitting(description)),
    )


def _fits(text: Any) -> bool:
    return type(text) is str and len(text) <= MAX_TEXT


def _fitting(text: Any) -> str:
    return cut(text_of(text))
