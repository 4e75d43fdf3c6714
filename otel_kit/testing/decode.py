"""OTLP messages as plain Python objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it arrived. Times are unix seconds, ids lower-case hex, kind and status as in the specification."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: float
    end: float
    attributes: dict[str, Any]
    status: str
    status_message: str
    events: list[tuple[str, dict[str, Any]]]
    links: list[tuple[str, str]]
    scope: str
    resource: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A log record as it arrived."""

    service: str
    time: float
    severity: str
    body: Any
    event_name: str
    attributes: dict[str, Any]
    trace_id: str
    span_id: str
    scope: str
    resource: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One point of a metric as it arrived; ``value`` of a histogram is its sum."""

    service: str
    name: str
    kind: str
    unit: str
    attributes: dict[str, Any]
    value: float
    count: int
    buckets: tuple[int, ...]
    bounds: tuple[float, ...]
    start: float
    time: float
    exemplars: list[tuple[str, str, float]]
    resource: dict[str, Any] = field(repr=False)


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """The spans of one request."""
    for group in request.resource_spans:
        resource = _attributes(group.resource.attributes)
        for scoped in group.scope_spans:
            for span in scoped.spans:
                yield Span(
                    service=str(resource.get("service.name", "")),
                    name=span.name,
                    kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    start=span.start_time_unix_nano / 1e9,
                    end=span.end_time_unix_nano / 1e9,
                    attributes=_attributes(span.attributes),
                    status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
                    status_message=span.status.message,
                    events=[(event.name, _attributes(event.attributes)) for event in span.events],
                    links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    scope=scoped.scope.name,
                    resource=resource,
                )


def logs(request: ExportLogsServiceRequest) -> Iterator[LogRecord]:
    """The log records of one request."""
    for group in request.resource_logs:
        resource = _attributes(group.resource.attributes)
        for scoped in group.scope_logs:
            for record in scoped.log_records:
                yield LogRecord(
                    service=str(resource.get("service.name", "")),
                    time=(record.time_unix_nano or record.observed_time_unix_nano) / 1e9,
                    severity=record.severity_text,
                    body=_value(record.body),
                    event_name=record.event_name,
                    attributes=_attributes(record.attributes),
                    trace_id=record.trace_id.hex(),
                    span_id=record.span_id.hex(),
                    scope=scoped.scope.name,
                    resource=resource,
                )


def points(request: ExportMetricsServiceRequest) -> Iterator[MetricPoint]:
    """The points of one request."""
    for group in request.resource_metrics:
        resource = _attributes(group.resource.attributes)
        for scoped in group.scope_metrics:
            for metric in scoped.metrics:
                kind = metric.WhichOneof("data")
                if kind is None:
                    continue
                for point in getattr(metric, kind).data_points:
                    yield _point(metric, kind, point, resource)


def _point(metric: Any, kind: str, point: Any, resource: dict[str, Any]) -> MetricPoint:
    plain = kind in ("sum", "gauge")
    return MetricPoint(
        service=str(resource.get("service.name", "")),
        name=metric.name,
        kind=kind,
        unit=metric.unit,
        attributes=_attributes(point.attributes),
        value=float(getattr(point, point.WhichOneof("value") or "as_double")) if plain else point.sum,
        count=0 if plain else point.count,
        buckets=() if plain else tuple(getattr(point, "bucket_counts", ())),
        bounds=() if plain else tuple(getattr(point, "explicit_bounds", ())),
        start=point.start_time_unix_nano / 1e9,
        time=point.time_unix_nano / 1e9,
        exemplars=[
            (item.trace_id.hex(), item.span_id.hex(), float(getattr(item, item.WhichOneof("value") or "as_double")))
            for item in getattr(point, "exemplars", ())
        ],
        resource=resource,
    )
