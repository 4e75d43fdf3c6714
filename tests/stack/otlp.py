"""OTLP by hand: protobuf over HTTP, so that a test knows exactly which spans, points and records were sent and accepted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping

import httpx
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Gauge,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

Value = str | int | float | bool
Request = ExportTraceServiceRequest | ExportMetricsServiceRequest | ExportLogsServiceRequest
SCOPE = InstrumentationScope(name="tests.stack")


def nanos(seconds: float) -> int:
    return int(seconds * 1e9)


def attributes(values: Mapping[str, Value]) -> list[KeyValue]:
    def wrap(value: Value) -> AnyValue:
        match value:
            case bool():
                return AnyValue(bool_value=value)
            case int():
                return AnyValue(int_value=value)
            case float():
                return AnyValue(double_value=value)
            case _:
                return AnyValue(string_value=value)

    return [KeyValue(key=key, value=wrap(value)) for key, value in values.items()]


def resource(service: str, extra: Mapping[str, Value] | None = None) -> Resource:
    identity: dict[str, Value] = {
        "service.name": service,
        "service.namespace": "tests",
        "service.version": "1.2.3",
        "deployment.environment.name": "test",
        "service.instance.id": "one",
    }
    return Resource(attributes=attributes({**identity, **(extra or {})}))


def span(
    name: str = "process orders",
    *,
    start: float | None = None,
    seconds: float = 0.05,
    trace_id: bytes | None = None,
    parent: bytes = b"",
    kind: Span.SpanKind.ValueType = Span.SPAN_KIND_SERVER,
    attrs: Mapping[str, Value] | None = None,
    status: Status | None = None,
) -> Span:
    begin = time.time() - seconds if start is None else start
    return Span(
        trace_id=trace_id or os.urandom(16),
        span_id=os.urandom(8),
        parent_span_id=parent,
        name=name,
        kind=kind,
        start_time_unix_nano=nanos(begin),
        end_time_unix_nano=nanos(begin + seconds),
        attributes=attributes(attrs or {}),
        status=status,
    )


def traces(service: str, spans: Iterable[Span], extra: Mapping[str, Value] | None = None) -> ExportTraceServiceRequest:
    scope = ScopeSpans(scope=SCOPE, spans=spans)
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource(service, extra), scope_spans=[scope])]
    )


def record(body: str, *, at: float | None = None, attrs: Mapping[str, Value] | None = None) -> LogRecord:
    stamp = nanos(time.time() if at is None else at)
    return LogRecord(
        time_unix_nano=stamp,
        observed_time_unix_nano=stamp,
        severity_number=9,
        severity_text="INFO",
        body=AnyValue(string_value=body),
        attributes=attributes(attrs or {}),
    )


def logs(
    service: str, records: Iterable[LogRecord], extra: Mapping[str, Value] | None = None
) -> ExportLogsServiceRequest:
    scope = ScopeLogs(scope=SCOPE, log_records=records)
    return ExportLogsServiceRequest(resource_logs=[ResourceLogs(resource=resource(service, extra), scope_logs=[scope])])


def gauge(name: str, value: float, *, at: float | None = None, attrs: Mapping[str, Value] | None = None) -> Metric:
    stamp = nanos(time.time() if at is None else at)
    point = NumberDataPoint(time_unix_nano=stamp, as_double=value, attributes=attributes(attrs or {}))
    return Metric(name=name, gauge=Gauge(data_points=[point]))


def counter(
    name: str, value: float, *, started: float, at: float | None = None, attrs: Mapping[str, Value] | None = None
) -> Metric:
    point = NumberDataPoint(
        start_time_unix_nano=nanos(started),
        time_unix_nano=nanos(time.time() if at is None else at),
        as_double=value,
        attributes=attributes(attrs or {}),
    )
    cumulative = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    return Metric(name=name, sum=Sum(data_points=[point], aggregation_temporality=cumulative, is_monotonic=True))


def metrics(
    service: str, found: Iterable[Metric], extra: Mapping[str, Value] | None = None
) -> ExportMetricsServiceRequest:
    scope = ScopeMetrics(scope=SCOPE, metrics=found)
    resource_metrics = ResourceMetrics(resource=resource(service, extra), scope_metrics=[scope])
    return ExportMetricsServiceRequest(resource_metrics=[resource_metrics])


_PATHS: dict[type[Request], str] = {
    ExportTraceServiceRequest: "/v1/traces",
    ExportMetricsServiceRequest: "/v1/metrics",
    ExportLogsServiceRequest: "/v1/logs",
}


class Sender:
    """Sends requests to an OTLP/HTTP endpoint and says which were accepted. Not for several threads at once."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._client = httpx.Client(timeout=5.0, trust_env=False)

    def close(self) -> None:
        self._client.close()

    def try_send(self, request: Request) -> bool:
        """Whether the collector has answered 2xx; a refused or broken connection is a no."""
        try:
            answer = self._client.post(
                self._endpoint + _PATHS[type(request)],
                content=request.SerializeToString(),
                headers={"Content-Type": "application/x-protobuf"},
            )
        except httpx.TransportError:
            return False
        return answer.is_success

    def send(self, request: Request) -> None:
        assert self.try_send(request), "the collector did not accept the request"


class Traffic:
    """One span, one point and one log record about every ``pause`` seconds, until stopped; knows what was accepted.

    Every span is a trace of its own with the attribute ``n``; every point is a series of its own with the label ``n``;
    every line ends with its number. So each can be counted in its backend, whatever is repeated.
    """

    def __init__(self, endpoint: str, service: str, pause: float = 0.05) -> None:
        self.service = service
        self.accepted: dict[str, set[int]] = {"spans": set(), "points": set(), "lines": set()}
        self.started = time.time()
        self._sender = Sender(endpoint)
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._sender.close()

    def _run(self) -> None:
        n = 0
        while not self._stop.wait(self._pause):
            n += 1
            requests: dict[str, Request] = {
                "spans": traces(self.service, [span(attrs={"n": n})]),
                "points": metrics(self.service, [gauge("traffic.point", n, attrs={"n": n})]),
                "lines": logs(self.service, [record(f"line {n}")]),
            }
            for signal, request in requests.items():
                if self._sender.try_send(request):
                    self.accepted[signal].add(n)
