"""Requests below the receivers' limit, and no item that spoils the others."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from otel_kit.telemetry.encoding import MAX_REQUEST, count, encode, split
from otel_kit.telemetry.payload import Cause, Payload, Signal
from otel_kit.testing import decode

_REQUESTS: dict[str, Any] = {
    "traces": ExportTraceServiceRequest,
    "logs": ExportLogsServiceRequest,
    "metrics": ExportMetricsServiceRequest,
}
_DECODERS: dict[str, Any] = {"traces": decode.spans, "logs": decode.logs, "metrics": decode.points}

_unlimited = SpanLimits(**dict.fromkeys(("max_events", "max_links", "max_span_attributes"), 100_000))  # type: ignore[arg-type]
_providers = [
    TracerProvider(resource=Resource({"service.name": name}), shutdown_on_exit=False, span_limits=_unlimited)
    for name in ("a", "b")
]


def _span(number: int, scope: str = "scope", provider: int = 0, **attributes: Any) -> ReadableSpan:
    span: Any = (
        _providers[provider].get_tracer(scope).start_span(f"span-{number}", attributes={"n": number, **attributes})
    )
    span.end()
    return span._readable_span()  # type: ignore[no-any-return]


def _record(body: Any, scope: str = "scope", **attributes: Any) -> ReadableLogRecord:
    log = LogRecord(
        timestamp=time.time_ns(),
        severity_number=SeverityNumber.INFO,
        severity_text="INFO",
        body=body,
        attributes=attributes,
    )
    ReadWriteLogRecord(log)
    return ReadableLogRecord(log, Resource({"service.name": "a"}), InstrumentationScope(scope))


def _metrics(points: int = 3) -> MetricsData:
    """A collection with every kind of data that the SDK makes, in two scopes."""
    reader = InMemoryMetricReader(preferred_aggregation={Histogram: ExponentialBucketHistogramAggregation()})
    other = InMemoryMetricReader()
    for one, scopes in ((reader, ("first",)), (other, ("first", "second"))):
        provider = MeterProvider([one], resource=Resource({"service.name": "a"}), shutdown_on_exit=False)
        for scope in scopes:
            meter = provider.get_meter(scope, "1.0", "https://schema")
            counter, histogram = meter.create_counter("requests", "1", "All"), meter.create_histogram("seconds", "s")
            gauge, both = meter.create_gauge("level"), meter.create_up_down_counter("open")
            for n in range(points):
                for act in (counter.add, histogram.record, gauge.set, both.add):
                    act(n + 1, {"n": n})
    collected = [one.get_metrics_data() for one in (reader, other)]
    first, second = (data.resource_metrics[0] for data in collected if data is not None)
    return MetricsData([replace(first, resource=Resource({"service.name": "exponential"})), second])


def _items(payloads: Sequence[Payload]) -> list[Any]:
    found: list[Any] = []
    for payload in payloads:
        message = _REQUESTS[payload.signal].FromString(payload.body)
        inside = list(_DECODERS[payload.signal](message))
        assert len(inside) == payload.items == count(payload.signal, payload.body)
        found += inside
    return found


def _batch(signal: Signal) -> Any:
    if signal == "metrics":
        return _metrics()
    if signal == "logs":
        return [_record(f"line {n}", f"scope-{n % 2}", n=n) for n in range(37)]
    return [_span(n, f"scope-{n % 3}", n % 2) for n in range(37)]


SIGNALS: list[Signal] = ["traces", "logs", "metrics"]


def test_a_batch_is_what_upstream_makes_of_it_in_one_payload() -> None:
    spans = _batch("traces")
    encoded = encode("traces", spans, clock=lambda: 12.5)
    assert encoded.dropped == Counter()
    [payload] = encoded.payloads
    assert payload == Payload("traces", encode_spans(spans).SerializeToString(), 37, 12.5)


def test_the_common_case_costs_what_upstreams_encoder_costs() -> None:
    spans = [_span(n, route="/orders/{id}", method="GET") for n in range(512)]
    ratios = []
    for _ in range(15):
        began = time.process_time()
        encode_spans(spans).SerializeToString()
        alone = time.process_time()
        encode("traces", spans)
        ratios.append((time.process_time() - alone) / (alone - began))
    assert sorted(ratios)[7] < 1.25  # the median, measured about 1.0


@pytest.mark.parametrize("signal", SIGNALS)
def test_nothing_makes_no_payload(signal: Signal) -> None:
    assert encode(signal, MetricsData([]) if signal == "metrics" else []).payloads == []


@pytest.mark.parametrize("signal", SIGNALS)
def test_halves_hold_all_items_in_order_each_with_its_headers(signal: Signal) -> None:
    [payload] = encode(signal, _batch(signal)).payloads
    whole = _items([payload])
    if signal == "metrics":
        assert {point.kind for point in whole} == {"sum", "gauge", "histogram", "exponential_histogram"}
    halves = split(payload)
    assert halves is not None
    assert [half.items for half in halves] == [payload.items // 2, payload.items - payload.items // 2]
    assert _items(halves) == whole
    pending, single = [payload], []
    while pending:
        one = pending.pop(0)
        parts = split(one)
        if parts is None:
            assert one.items == 1
            assert one.created == payload.created
            single.append(one)
        else:
            pending[:0] = parts
    assert _items(single) == whole
    # Put together again they say the same: names, units, temporality, scopes, schema URLs are all repeated.
    texts = [_described(signal, one) for one in single]
    assert all(set(text) <= set(_described(signal, payload)) for text in texts)


def _described(signal: Signal, payload: Payload) -> list[str]:
    message = _REQUESTS[signal].FromString(payload.body)
    lines = []
    for group in next(iter(message.ListFields()))[1]:
        scopes = getattr(
            group, f"scope_{'metrics' if signal == 'metrics' else 'logs' if signal == 'logs' else 'spans'}"
        )
        for scope in scopes:
            lines.append(f"{group.resource} {group.schema_url} {scope.scope} {scope.schema_url}")
            for metric in getattr(scope, "metrics", ()):
                kind = metric.WhichOneof("data")
                data = getattr(metric, kind)
                lines.append(
                    f"{metric.name} {metric.unit} {metric.description} {kind} "
                    f"{getattr(data, 'aggregation_temporality', '')} {getattr(data, 'is_monotonic', '')}"
                )
    return lines


def test_points_of_a_summary_count_too() -> None:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="old")
    for n in range(5):
        metric.summary.data_points.add(count=n)
    halves = split(Payload("metrics", request.SerializeToString(), 5, 0.0))
    assert halves is not None
    assert [half.items for half in halves] == [2, 3]
    assert [count("metrics", half.body) for half in halves] == [2, 3]


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("limit", [800, 1_500])
def test_a_batch_above_the_limit_becomes_several_payloads_in_order(signal: Signal, limit: int) -> None:
    batch = _batch(signal)
    whole = _items(encode(signal, batch).payloads)
    encoded = encode(signal, batch, limit=limit)
    assert len(encoded.payloads) > 1
    assert all(len(payload.body) <= limit for payload in encoded.payloads)
    assert encoded.dropped == Counter()
    assert _items(encoded.payloads) == whole
    # Filled as far as they go: no two neighbours would fit into one.
    sizes = [len(payload.body) for payload in encoded.payloads]
    assert all(one + other > limit for one, other in itertools.pairwise(sizes))


def test_forty_megabytes_leave_in_payloads_that_grpc_takes_by_default() -> None:
    spans = [_span(n, text="x" * 80_000) for n in range(512)]
    began = time.process_time()
    encoded = encode("traces", spans)
    assert time.process_time() - began < 5
    assert max(len(payload.body) for payload in encoded.payloads) <= MAX_REQUEST < 4 * 1024 * 1024
    assert [span.attributes["n"] for span in _items(encoded.payloads)] == list(range(512))


class Silent:
    """Writes nothing, whatever it is asked."""

    def _raise(self, *_: object) -> Any:
        raise RuntimeError("no")

    __str__ = __repr__ = __len__ = __iter__ = __bool__ = __eq__ = _raise  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def _spoil(span: Any, part: str, value: Any) -> ReadableSpan:
    setattr(span, part, value)
    return span  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("_name", 5), ("_name", "a\ud800b"), ("_name", Silent()), ("_name", b"bytes"), ("_start_time", -5),
        ("_end_time", 2**70), ("_start_time", 1.5), ("_start_time", "yesterday"), ("_kind", "server"), ("_status", None),
        ("_status", "failed"), ("_parent", "somebody"), ("_resource", Resource({"a": 2**70})),
        ("_instrumentation_scope", InstrumentationScope("a\ud800")), ("_instrumentation_scope", None),
        ("_instrumentation_scope", InstrumentationScope("a", "\udc00", "\udc00")),
        ("_attributes", {"a": Silent()}), ("_attributes", {"a\ud800": "\udfff"}), ("_attributes", {5: 6}),
        ("_attributes", {"a": {1: Silent()}}), ("_attributes", {"a": {1, 2}}), ("_attributes", {"a": 2**64}),
        ("_attributes", {"a": [[2**70]]}), ("_attributes", {"a": bytearray(b"x")}), ("_attributes", {"a": float("nan")}),
        ("_attributes", {"a": lambda: None}), ("_attributes", {"a": 1 << 10_000}),
        ("_attributes", {"a": 1 << 1_000_000}),
    ],
)  # fmt: skip
def test_what_protobuf_refuses_arrives_in_a_readable_form_and_its_neighbours_as_they_are(part: str, value: Any) -> None:
    neighbours = [_span(n) for n in range(10)]
    expected = _items(encode("traces", neighbours).payloads)
    batch = [*neighbours[:5], _spoil(_span(99), part, value), *neighbours[5:]]
    encoded = encode("traces", batch)
    assert encoded.dropped == Counter()
    arrived = _items(encoded.payloads)
    assert len(arrived) == 11
    assert [span for span in arrived if span in expected] == expected


def test_a_readable_form_is_readable() -> None:
    huge, wide = 1 << 70, 1 << 1_000_000
    span = _span(1)
    span._attributes = {  # type: ignore[assignment]
        "int": huge, "wide": wide, "lowest": -(2**63), "nan": float("nan"), "silent": Silent(), "key\ud800": "\ud800",
        "set": {1}, "nested": {"int": huge, "none": None},
    }  # fmt: skip
    [arrived] = _items(encode("traces", [span]).payloads)
    assert arrived.attributes["int"] == str(huge)
    assert arrived.attributes["wide"].startswith("0x1000")
    assert "... [cut " in arrived.attributes["wide"]
    assert arrived.attributes["lowest"] == -(2**63)
    assert arrived.attributes["nan"] != arrived.attributes["nan"]
    assert arrived.attributes["silent"] == "<Silent, whose str() raises RuntimeError>"
    assert arrived.attributes["key?"] == "?"
    assert arrived.attributes["set"] == [1]
    assert arrived.attributes["nested"] == {"int": str(huge), "none": None}


@pytest.mark.parametrize("garbage", [None, 5, "text", object(), Silent(), {"a": 1}])
def test_what_is_no_item_at_all_is_dropped_alone_and_counted(garbage: Any) -> None:
    spans = [_span(n) for n in range(20)]
    encoded = encode("traces", [*spans[:7], garbage, *spans[7:], garbage])
    assert encoded.dropped == {Cause.UNENCODABLE: 2}
    assert [span.attributes["n"] for span in _items(encoded.payloads)] == list(range(20))
    records = encode("logs", [_record("a"), garbage, _record("b")])
    assert records.dropped == {Cause.UNENCODABLE: 1}
    assert [record.body for record in _items(records.payloads)] == ["a", "b"]
    assert encode("metrics", garbage).dropped == {Cause.UNENCODABLE: 1}


def test_offenders_are_found_quickly() -> None:
    spans = [_span(n) for n in range(512)]
    for place in (3, 100, 101, 500):
        _spoil(spans[place], "_context", None)
    began = time.process_time()
    encoded = encode("traces", spans)
    assert time.process_time() - began < 3
    assert encoded.dropped == {Cause.UNENCODABLE: 4}
    assert len(_items(encoded.payloads)) == 508


@pytest.mark.parametrize(
    "body",
    [Silent(), {1, 2}, 2**70, "a\ud800", {"a": Silent()}, [2**70], {"k\ud800": 1}, lambda: None, float("inf"), b"\xff"],
)
def test_a_body_that_protobuf_refuses_arrives_in_a_readable_form(body: Any) -> None:
    encoded = encode("logs", [_record("before"), _record(body), _record("after")])
    assert encoded.dropped == Counter()
    arrived = [record.body for record in _items(encoded.payloads)]
    assert (arrived[0], arrived[2], len(arrived)) == ("before", "after", 3)


def test_a_total_beyond_64_bits_arrives_as_a_float_and_spoils_no_other() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], resource=Resource({"service.name": "a"}), shutdown_on_exit=False)
    meter = provider.get_meter("scope", "1")
    for n in range(10):
        meter.create_counter(f"c{n}").add(n)
    meter.create_counter("big").add(2**70, {"k\ud800": "v"})
    meter.create_histogram("h").record(2**70)
    encoded = encode("metrics", reader.get_metrics_data())  # type: ignore[arg-type]
    points = {point.name: point for point in _items(encoded.payloads)}
    assert points["big"].value == 2**70
    assert points["big"].attributes == {"k?": "v"}
    assert points["h"].value == 2**70
    assert [points[f"c{n}"].value for n in range(10)] == list(range(10))
    assert encoded.dropped == Counter()


def test_points_of_equal_resources_and_scopes_all_arrive_when_some_had_to_be_mended() -> None:
    data = _metrics(5)
    for scope in data.resource_metrics[1].scope_metrics:
        for metric in scope.metrics:
            metric.data.data_points[1].attributes["bad\ud800"] = 2**70  # type: ignore[index]
            metric.data.data_points[3].attributes["bad\ud800"] = 2**70  # type: ignore[index]
    encoded = encode("metrics", data)
    assert encoded.dropped == Counter()
    points = _items(encoded.payloads)
    assert len(points) == len(_items(encode("metrics", _metrics(5)).payloads))
    assert sum(point.attributes.get("bad?") == str(2**70) for point in points) == 2 * 4 * 2


def test_an_item_above_the_limit_is_cut_visibly_and_its_neighbours_are_not() -> None:
    big: Any = _providers[0].get_tracer("scope").start_span("big", attributes={"n": 50, "text": "word " * 2_000_000})
    for n in range(5_000):
        big.add_event("tick", {"n": n, "text": "e" * 500})
        big.add_link(SpanContext(1 + n, 1, False, TraceFlags(1)), {"text": "l" * 500})
    big.add_event("exception", {"exception.message": "the last"})
    big.set_attribute("list", ["item " * 100] * 5_000)
    big.set_status(Status(StatusCode.ERROR, "s" * 1_000_000))
    big.end()
    spans = [_span(n) for n in range(50)] + [big._readable_span()] + [_span(n) for n in range(51, 101)]
    began = time.process_time()
    encoded = encode("traces", spans, limit=200_000)
    assert time.process_time() - began < 5
    assert encoded.dropped == Counter()
    assert all(len(payload.body) <= 200_000 for payload in encoded.payloads)
    arrived = _items(encoded.payloads)
    assert [span.attributes["n"] for span in arrived] == list(range(101))
    shrunk = arrived[50]
    assert re.search(r"\.\.\. \[cut \d+ characters\] \.\.\.", shrunk.attributes["text"])
    assert re.fullmatch(r"\.\.\. \[cut \d+ items\] \.\.\.", shrunk.attributes["list"][-1])
    assert "... [cut " in shrunk.status_message
    assert shrunk.events[-1] == ("exception", {"exception.message": "the last"})
    raw = _raw_span(encoded.payloads, "big")
    assert raw.dropped_events_count + len(raw.events) == 5_001
    assert raw.dropped_links_count + len(raw.links) == 5_000
    assert len(encoded.payloads) <= 3


def _raw_span(payloads: Sequence[Payload], name: str) -> Any:
    for payload in payloads:
        for group in ExportTraceServiceRequest.FromString(payload.body).resource_spans:
            for scope in group.scope_spans:
                for span in scope.spans:
                    if span.name == name:
                        return span
    raise AssertionError(name)


def test_a_log_record_above_the_limit_is_cut_visibly() -> None:
    body = {"text": "word " * 1_000_000, "list": list(range(100_000)), "bytes": b"x" * 1_000_000}
    encoded = encode(
        "logs", [_record("before"), _record(body, **{"k" * 200_000: "v"}), _record("after")], limit=100_000
    )
    before, cut, after = _items(encoded.payloads)
    assert (before.body, after.body) == ("before", "after")
    assert all("[cut " in str(value) for value in cut.body.values())
    [key] = cut.attributes
    assert "... [cut 199" in key


def test_attributes_that_are_too_many_go_into_the_count() -> None:
    span: Any = _span(1, **{f"k{n}": "x" * 60 for n in range(5_000)})
    [payload] = encode("traces", [span], limit=20_000).payloads
    raw = _raw_span([payload], "span-1")
    assert raw.dropped_attributes_count + len(raw.attributes) == 5_001
    assert len(raw.attributes) > 100


def test_a_resource_above_the_limit_is_cut_too() -> None:
    span = _spoil(_span(1), "_resource", Resource({"service.name": "a", "env": "e" * 1_000_000}))
    [arrived] = _items(encode("traces", [span], limit=50_000).payloads)
    assert arrived.service == "a"
    assert "... [cut " in arrived.resource["env"]


def test_what_cannot_be_made_small_enough_is_dropped_alone_and_counted() -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("scope")
    buckets = [float(n) for n in range(50_000)]
    meter.create_histogram("wide", explicit_bucket_boundaries_advisory=buckets).record(1)
    meter.create_counter("c").add(1)
    encoded = encode("metrics", reader.get_metrics_data(), limit=100_000)  # type: ignore[arg-type]
    assert encoded.dropped == {Cause.TOO_LARGE: 1}
    assert [point.name for point in _items(encoded.payloads)] == ["c"]


def test_counts_of_what_the_sdk_dropped_survive_mending() -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    span: Any = tracer.start_span("full", attributes={f"k{n}": n for n in range(200)})
    for n in range(200):
        span.add_event("e", {f"k{k}": k for k in range(200)} if n == 199 else None)
        span.add_link(SpanContext(1 + n, 1, False))
    span.end()
    readable = span._readable_span()
    readable._name = "full\ud800"
    raw = _raw_span(encode("traces", [readable]).payloads, "full?")
    assert (raw.dropped_attributes_count, raw.dropped_events_count, raw.dropped_links_count) == (72, 72, 72)
    assert raw.events[-1].dropped_attributes_count == 72


def test_upstreams_complaints_do_not_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    span = _spoil(_span(1), "_attributes", {"a": 2**70})
    with caplog.at_level(logging.DEBUG):
        encode("traces", [span])
        assert caplog.records == []
        encode_spans([span])  # somebody else's encoding is their own
        assert caplog.records != []


def test_a_request_can_be_amended_before_it_is_split() -> None:
    def amend(request: Any) -> Any:
        for group in request.resource_spans:
            group.resource.attributes.add(key="extra").value.string_value = "x"
        return request

    encoded = encode("traces", _batch("traces"), limit=1_500, amend=amend)
    assert len(encoded.payloads) > 1
    assert all(span.resource["extra"] == "x" for span in _items(encoded.payloads))


def test_spans_keep_ids_parents_and_states() -> None:
    state = trace.TraceState([("vendor", "value")])
    parent = SpanContext(5, 6, True, TraceFlags(1), state)
    context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
    span: Any = _providers[0].get_tracer("t").start_span("child", context)
    span.end()
    raw = _raw_span(encode("traces", [span._readable_span()]).payloads, "child")
    assert (raw.trace_id.hex(), raw.parent_span_id.hex()) == (f"{5:032x}", f"{6:016x}")
