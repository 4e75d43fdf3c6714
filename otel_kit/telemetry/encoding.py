"""Items to OTLP requests that a receiver takes: below its size limit, and without the item that would spoil the others.

The common case is one call of upstream's encoder and nothing else. Only where that fails, or makes too much, is the batch
looked into: what cannot be written is found by halving, and leaves alone.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.trace import ReadableSpan

from otel_kit.telemetry import mending, shrinking
from otel_kit.telemetry.payload import Cause, Payload, Signal

#: Bytes of one request, uncompressed. gRPC takes messages of up to 4 MiB unless told otherwise
#: (``GRPC_DEFAULT_MAX_RECV_MESSAGE_LENGTH`` in grpc's grpc_types.h, which the collector's ``max_recv_msg_size_mib``
#: follows), counted after decompression; the rest is room for what a proxy or a collector adds on the way.
MAX_REQUEST: Final = 4 * 1024 * 1024 - 128 * 1024

Items = Sequence[ReadableSpan] | Sequence[ReadableLogRecord] | MetricsData


class _Format(NamedTuple):
    """How one signal is written: its encoder, its request, and where the items are in that."""

    encode: Callable[[Any], Any]
    request: Any
    groups: str
    scopes: str
    items: str


_FORMATS: Final[dict[Signal, _Format]] = {
    "traces": _Format(encode_spans, ExportTraceServiceRequest, "resource_spans", "scope_spans", "spans"),
    "logs": _Format(encode_logs, ExportLogsServiceRequest, "resource_logs", "scope_logs", "log_records"),
    "metrics": _Format(encode_metrics, ExportMetricsServiceRequest, "resource_metrics", "scope_metrics", "metrics"),
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of a batch.

    Attributes:
        payloads: The requests, in the items' order.
        dropped: Items that are in none of them, by cause.
    """

    payloads: list[Payload] = field(default_factory=list)
    dropped: Counter[Cause] = field(default_factory=Counter)


def encode(
    signal: Signal,
    items: Items,
    *,
    limit: int = MAX_REQUEST,
    clock: Callable[[], float] = time.time,
    amend: Callable[[Any], Any] | None = None,
) -> Encoded:
    """Write items as OTLP requests, none above the limit. Nothing is raised.

    What cannot be written as it is arrives in a readable form where there is one (an integer beyond 64 bits as its text),
    and is dropped alone where there is none. An item that is above the limit by itself is cut, and says so: events and links
    go into its ``dropped_*_count``, texts and lists bear a mark.

    Args:
        signal: What they are.
        items: Spans, log records, or one collection of metrics; redacted.
        limit: Bytes of one request.
        clock: Tells the time, unix seconds.
        amend: Takes the whole ``Export...ServiceRequest`` before it is measured and split, and gives back what is to be sent.
    """
    encoded = Encoded()
    try:
        message, complaints = _encoded(signal, items)
    except Exception:  # noqa: BLE001 - whatever it was, it is looked for
        message, complaints = None, True
    if complaints:
        message = _sifted(signal, items, encoded.dropped)
    if amend is not None and message is not None:
        message = amend(message)
    bodies = [] if message is None else list(_bodies(signal, message, limit, encoded.dropped))
    created = clock()
    encoded.payloads.extend(Payload(signal, body, number, created) for body, number in _joined(bodies, limit))
    return encoded


def split(payload: Payload) -> tuple[Payload, Payload] | None:
    """The two halves of a request, by items, in order, each with the headers of its items; None when there is one item."""
    layout = _FORMATS[payload.signal]
    message = layout.request.FromString(payload.body)
    total = _number(layout, message)
    if total < 2:
        return None
    halves = _halves(layout, message, total)
    first, second = (
        Payload(payload.signal, half.SerializeToString(), number, payload.created)
        for half, number in zip(halves, (total // 2, total - total // 2), strict=True)
    )
    return first, second


def count(signal: Signal, body: bytes) -> int:
    """Spans, data points or log records in a request."""
    layout = _FORMATS[signal]
    return _number(layout, layout.request.FromString(body))


# Upstream leaves an attribute out that it cannot write, and logs a traceback for each.
_heard: ContextVar[list[str] | None] = ContextVar("otel_kit_encoder_complaints", default=None)


def _hear(record: logging.LogRecord) -> bool:
    heard = _heard.get()
    if heard is None:
        return True  # somebody else's encoding
    heard.append(record.name)
    return False


logging.getLogger("opentelemetry.exporter.otlp.proto.common._internal").addFilter(_hear)


def _encoded(signal: Signal, items: Any) -> tuple[Any, bool]:
    """The message, and whether upstream complained while it made it."""
    heard: list[str] = []
    token = _heard.set(heard)
    try:
        message = _FORMATS[signal].encode(items)
        return message, bool(heard)
    finally:
        _heard.reset(token)


class _Atom(NamedTuple):
    """One item and what it belongs to; for spans and log records, which know that themselves, the item alone."""

    item: Any
    metric: Any = None
    scope: Any = None
    resource: Any = None


def _atoms(signal: Signal, items: Any) -> Iterator[_Atom]:
    if signal != "metrics":
        yield from map(_Atom, items)
        return
    for resource in items.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    yield _Atom(point, metric, scope, resource)


def _sifted(signal: Signal, items: Items, dropped: Counter[Cause]) -> Any:
    """The message without what cannot be written."""
    try:
        atoms = list(_atoms(signal, items))
        good = list(_writable(signal, atoms))
        if len(good) < len(atoms):
            dropped[Cause.UNENCODABLE] += len(atoms) - len(good)
        return _encoded(signal, _items_of(signal, good))[0]
    except Exception:  # noqa: BLE001 - it is no collection of items at all
        dropped[Cause.UNENCODABLE] += 1
        return None


def _items_of(signal: Signal, atoms: list[_Atom]) -> Any:
    return mending.metrics_of(atoms) if signal == "metrics" else [atom.item for atom in atoms]


def _writable(signal: Signal, atoms: list[_Atom]) -> Iterator[_Atom]:
    """The atoms that can be written, mended where they had to be."""
    if not atoms or _succeeds(signal, atoms):
        yield from atoms
    elif len(atoms) > 1:
        middle = len(atoms) // 2
        yield from _writable(signal, atoms[:middle])
        yield from _writable(signal, atoms[middle:])
    else:
        yield from _mended(signal, atoms[0])


def _succeeds(signal: Signal, atoms: list[_Atom]) -> bool:
    try:
        return not _encoded(signal, _items_of(signal, atoms))[1]
    except Exception:  # noqa: BLE001 - the answer
        return False


def _mended(signal: Signal, atom: _Atom) -> Iterator[_Atom]:
    try:
        mended = _Atom(*mending.MENDERS[signal](*atom))
        _encoded(signal, _items_of(signal, [mended]))
    except Exception:  # noqa: BLE001 - nothing helps
        return
    yield mended


def _bodies(signal: Signal, message: Any, limit: int, dropped: Counter[Cause]) -> Iterator[tuple[bytes, int]]:
    """Serialised parts of a message, each within the limit, and their numbers of items."""
    layout = _FORMATS[signal]
    number = _number(layout, message)
    try:
        body = message.SerializeToString()
    except Exception:  # noqa: BLE001 - above protobuf's own 2 GiB
        body = None
    if body is not None and len(body) <= limit:
        if number:
            yield body, number
    elif number > 1:
        for half in _halves(layout, message, number):
            yield from _bodies(signal, half, limit, dropped)
    elif number == 1:
        body = _shrunk(layout, message, limit)
        if body is None:
            dropped[Cause.TOO_LARGE] += 1
        else:
            yield body, 1


def _shrunk(layout: _Format, message: Any, limit: int) -> bytes | None:
    try:
        shrinking.shrink(message, layout.groups, layout.scopes, layout.items, limit)
        body: bytes = message.SerializeToString()
    except Exception:  # noqa: BLE001 - nested deeper than can be walked
        return None
    return body if len(body) <= limit else None


def _joined(parts: list[tuple[bytes, int]], limit: int) -> Iterator[tuple[bytes, int]]:
    """Neighbours in one request where they fit: messages that are written one after the other are one message."""
    pending: list[bytes] = []
    size = items = 0
    for body, number in parts:
        if pending and size + len(body) > limit:
            yield b"".join(pending), items
            pending, size, items = [], 0, 0
        pending.append(body)
        size, items = size + len(body), items + number
    if pending:
        yield pending[0] if len(pending) == 1 else b"".join(pending), items


def _repeated(layout: _Format, scope: Any) -> list[Any]:
    """The fields of one scope that hold its items: one of spans or records, or one of points for each metric."""
    held = getattr(scope, layout.items)
    if layout.items != "metrics":
        return [held]
    return [getattr(metric, kind).data_points for metric in held if (kind := metric.WhichOneof("data")) is not None]


def _number(layout: _Format, message: Any) -> int:
    return sum(
        len(items)
        for group in getattr(message, layout.groups)
        for scope in getattr(group, layout.scopes)
        for items in _repeated(layout, scope)
    )


def _halves(layout: _Format, message: Any, total: int) -> tuple[Any, Any]:
    middle = total // 2
    return _part(layout, message, 0, middle), _part(layout, message, middle, total)


def _part(layout: _Format, message: Any, start: int, stop: int) -> Any:
    """A copy of the message with the items from ``start`` to ``stop``, and with the headers that these have."""
    part = layout.request()
    part.CopyFrom(message)
    at = 0
    for group in getattr(part, layout.groups):
        for scope in getattr(group, layout.scopes):
            for items in _repeated(layout, scope):
                number = len(items)
                del items[min(number, max(0, stop - at)) :]
                del items[: min(len(items), max(0, start - at))]
                at += number
            if layout.items == "metrics":
                _keep(scope.metrics, _has_points)
        _keep(getattr(group, layout.scopes), lambda scope: len(getattr(scope, layout.items)) > 0)
    _keep(getattr(part, layout.groups), lambda group: len(getattr(group, layout.scopes)) > 0)
    return part


def _has_points(metric: Any) -> bool:
    kind = metric.WhichOneof("data")
    return kind is not None and len(getattr(metric, kind).data_points) > 0


def _keep(repeated: Any, wanted: Callable[[Any], bool]) -> None:
    for place in range(len(repeated) - 1, -1, -1):
        if not wanted(repeated[place]):
            del repeated[place]
