"""One item of an OTLP request made smaller, visibly, until a receiver takes it; harder from round to round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from otel_kit.telemetry.limits import MAX_KEY, cut, cut_bytes

#: Characters of a text, and items of a list, that each round leaves.
_ROUNDS: Final = ((8192, 64), (2048, 32), (512, 16), (128, 4), (64, 1))


def shrink(request: Any, groups: str, scopes: str, items: str, limit: int) -> None:
    """Cut the one item of a request, in place, until the request has at most ``limit`` bytes or nothing is left to cut.

    Texts and lists are cut first and bear a mark; then events, links and at last attributes go into the item's
    ``dropped_*_count``, the oldest events first. A data point keeps its attributes: they say which series it is.
    """
    group = getattr(request, groups)[0]
    scope = getattr(group, scopes)[0]
    item = getattr(scope, items)[0]
    headers = [group.resource, scope.scope]
    bearers = [item, *_inside(item)]
    for characters, number in _ROUNDS:
        for step in (_texts, _parts):
            for bearer in bearers:
                step(bearer, characters, number)
            if request.ByteSize() <= limit:
                return
        for header in headers:
            _texts(header, characters, number)
        if request.ByteSize() <= limit:
            return
    for bearer in (*bearers, *headers):
        _drop(bearer, "attributes", 0)
    _drop(item, "events", 0)
    _drop(item, "links", 0)


def _has(message: Any, name: str) -> bool:
    return name in message.DESCRIPTOR.fields_by_name


def _inside(item: Any) -> Iterator[Any]:
    """What of an item bears texts of its own."""
    for name in ("events", "links", "status"):
        if _has(item, name):
            inner = getattr(item, name)
            yield from (inner,) if name == "status" else inner
    if _has(item, "metadata"):  # a metric
        kind = item.WhichOneof("data")
        if kind is not None:
            yield from getattr(item, kind).data_points


def _texts(bearer: Any, characters: int, number: int) -> None:
    for name in ("name", "message", "description", "event_name", "severity_text", "version"):
        if _has(bearer, name):
            text = getattr(bearer, name)
            if len(text) > characters:
                setattr(bearer, name, cut(text, characters))
    if _has(bearer, "trace_state") and len(bearer.trace_state) > characters:
        bearer.trace_state = ""  # half of one says something else
    if _has(bearer, "body"):
        _shorten(bearer.body, characters, number)
    for name in ("attributes", "metadata"):
        if _has(bearer, name):
            for pair in getattr(bearer, name):
                _shorten_pair(pair, characters, number)


def _parts(bearer: Any, _characters: int, number: int) -> None:
    _drop(bearer, "events", number)
    _drop(bearer, "links", number)
    if _has(bearer, "exemplars"):
        del bearer.exemplars[:]
    _drop(bearer, "attributes", 2 * number)


def _drop(bearer: Any, name: str, number: int) -> None:
    counter = f"dropped_{name}_count"
    if not _has(bearer, counter):
        return
    held = getattr(bearer, name)
    excess = len(held) - number
    if excess > 0:
        del held[:excess]
        setattr(bearer, counter, getattr(bearer, counter) + excess)


def _shorten_pair(pair: Any, characters: int, number: int) -> None:
    if len(pair.key) > MAX_KEY:
        pair.key = cut(pair.key, MAX_KEY)
    _shorten(pair.value, characters, number)


def _shorten(value: Any, characters: int, number: int) -> None:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        if len(value.string_value) > characters:
            value.string_value = cut(value.string_value, characters, keep="both")
    elif kind == "bytes_value":
        value.bytes_value = cut_bytes(value.bytes_value, characters)
    elif kind == "array_value":
        values = value.array_value.values
        excess = len(values) - number
        if excess > 0:
            del values[number:]
        for item in values:
            _shorten(item, characters, number)
        if excess > 0:
            values.add(string_value=f"... [cut {excess} items] ...")
    elif kind == "kvlist_value":
        values = value.kvlist_value.values
        excess = len(values) - number
        if excess > 0:
            del values[number:]
        for pair in values:
            _shorten_pair(pair, characters, number)
        if excess > 0:
            values.add(key="...").value.string_value = f"[cut {excess} items]"
