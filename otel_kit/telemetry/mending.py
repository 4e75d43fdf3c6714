"""Items that upstream's encoder refuses, in a form that it takes: read part by part, each bounded, replaced where it must be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode

from otel_kit.telemetry.limits import MAX_KEY, cut
from otel_kit.telemetry.payload import Signal
from otel_kit.telemetry.plain import encodable, measured, plain, text_of
from otel_kit.telemetry.redaction import SpanCopy

#: OTLP's times are unsigned 64-bit nanoseconds (opentelemetry-proto, ``fixed64``).
_LATEST: Final = 2**64 - 1


def _text(value: Any) -> str:
    return encodable(cut(text_of(value)))


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _time(value: Any) -> int | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return max(0, min(int(value), _LATEST))


def _attributes(attributes: Any) -> Any:
    if not isinstance(attributes, Mapping) or not attributes:
        return None
    kept = {encodable(cut(text_of(key), MAX_KEY)): plain(value) for key, value in attributes.items()}
    bounded = BoundedAttributes(attributes=kept, immutable=True, extended_attributes=True)
    bounded.dropped = getattr(attributes, "dropped", 0)
    return bounded


def _resource(resource: Any) -> Any:
    return Resource(dict(_attributes(resource.attributes) or {}), _text(resource.schema_url or ""))


def _scope(scope: Any) -> Any:
    if scope is None:
        return None
    return InstrumentationScope(
        _text(scope.name or ""),
        _text_or_none(scope.version),
        _text_or_none(scope.schema_url),
        _attributes(scope.attributes),
    )


def _context(context: Any) -> Any:
    if not isinstance(context, SpanContext):
        return None
    # What does not fit is no id, and a state that cannot be written is nobody's.
    return SpanContext(context.trace_id % 2**128, context.span_id % 2**64, context.is_remote, context.trace_flags)


def _span(span: ReadableSpan, *headers: Any) -> tuple[Any, ...]:
    status = span.status
    code = status.status_code if isinstance(getattr(status, "status_code", None), StatusCode) else StatusCode.UNSET
    description = _text_or_none(getattr(status, "description", None)) if code is StatusCode.ERROR else None
    mended = SpanCopy(
        span,
        name=_text(span.name),
        context=_context(span.context),
        parent=_context(span.parent),
        resource=_resource(span.resource),
        kind=span.kind if isinstance(span.kind, SpanKind) else SpanKind.INTERNAL,
        start_time=_time(span.start_time),
        end_time=_time(span.end_time),
        instrumentation_scope=_scope(span.instrumentation_scope),
        attributes=_attributes(span.attributes),
        events=[
            Event(_text(event.name), _attributes(event.attributes), _time(event.timestamp)) for event in span.events
        ],
        links=[
            Link(context, _attributes(link.attributes)) for link in span.links if (context := _context(link.context))
        ],
        status=Status(code, description),
    )
    return mended, *headers


def _record(record: ReadableLogRecord, *headers: Any) -> tuple[Any, ...]:
    log = record.log_record
    log.timestamp = _time(log.timestamp)
    log.observed_timestamp = _time(log.observed_timestamp) or 0
    log.severity_text = _text_or_none(log.severity_text)
    log.severity_number = log.severity_number if hasattr(log.severity_number, "value") else None
    log.event_name = _text_or_none(log.event_name)
    log.body = plain(log.body)
    log.attributes = _attributes(log.attributes)
    log.trace_id, log.span_id = (log.trace_id or 0) % 2**128, (log.span_id or 0) % 2**64
    scope = _scope(record.instrumentation_scope)
    return replace(record, resource=_resource(record.resource), instrumentation_scope=scope), *headers


def _point(point: Any, metric: Any, scope: Any, resource: Any) -> tuple[Any, ...]:
    parts: dict[str, Any] = {"attributes": _attributes(point.attributes) or {}}
    for name in ("time_unix_nano", "start_time_unix_nano"):
        if hasattr(point, name):
            parts[name] = _time(getattr(point, name)) or 0
    if hasattr(point, "value"):
        parts["value"] = measured(point.value)
    for name in ("sum", "min", "max"):
        if hasattr(point, name):
            parts[name] = measured(getattr(point, name))
    parts["exemplars"] = []
    mended = replace(point, **parts)
    named = replace(
        metric, name=_text(metric.name), description=_text(metric.description or ""), unit=_text(metric.unit or "")
    )
    return (
        mended,
        named,
        replace(scope, scope=_scope(scope.scope)),
        replace(resource, resource=_resource(resource.resource)),
    )


MENDERS: Final[dict[Signal, Callable[..., tuple[Any, ...]]]] = {"traces": _span, "logs": _record, "metrics": _point}


def metrics_of(atoms: Iterable[Any]) -> MetricsData:
    """Points, each with its metric, scope and resource, as one collection again.

    Equal resources and scopes are brought together: upstream's encoder keeps only the last of those that are equal.
    """
    collected: dict[Any, tuple[Any, dict[Any, tuple[Any, list[tuple[Any, list[Any]]]]]]] = {}
    known: dict[tuple[int, int], list[tuple[Any, list[Any]]]] = {}
    for atom in atoms:
        place = id(atom.resource), id(atom.scope)
        if place not in known:  # hashing a resource writes it as JSON
            _group, scopes = collected.setdefault(atom.resource.resource, (atom.resource, {}))
            known[place] = scopes.setdefault(atom.scope.scope, (atom.scope, []))[1]
        metrics = known[place]
        if not metrics or not _same_metric(metrics[-1][0], atom.metric):
            metrics.append((atom.metric, []))
        metrics[-1][1].append(atom.item)
    return MetricsData(
        resource_metrics=[
            replace(
                group,
                scope_metrics=[
                    replace(
                        scope,
                        metrics=[
                            replace(metric, data=replace(metric.data, data_points=points)) for metric, points in metrics
                        ],
                    )
                    for scope, metrics in scopes.values()
                ],
            )
            for group, scopes in collected.values()
        ]
    )


def _same_metric(one: Any, other: Any) -> bool:
    return one is other or (
        one.data is other.data and (one.name, one.unit, one.description) == (other.name, other.unit, other.description)
    )
