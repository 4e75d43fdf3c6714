"""Whatever the application hands over: nothing is raised, and what is handed over arrives."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanContext, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import otel_kit
from otel_kit.jobs import errors, propagation
from otel_kit.jobs.model import Job, Trigger
from otel_kit.settings import OPTIONS
from otel_kit.telemetry import attributes, audit, logs
from otel_kit.telemetry.encoding import count, encode, split
from otel_kit.telemetry.limits import cut
from otel_kit.telemetry.payload import Payload, Signal
from otel_kit.telemetry.plain import plain, stacktrace
from otel_kit.telemetry.propagators import InboundBaggage, Propagators, propagate
from otel_kit.telemetry.redaction import Redactor
from otel_kit.testing import decode

# The same examples at every run: a fuzz that finds something new belongs to tests/fuzz, not to a run that must be green.
fuzz = settings(
    max_examples=100,
    phases=(Phase.explicit, Phase.generate),
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)  # fmt: skip
redactor = Redactor()
# In a process of its own `attributes.install` sees to it; pytest puts its own filters before that.
pytestmark = pytest.mark.filterwarnings("ignore::opentelemetry.sdk._logs.LogRecordDroppedAttributesWarning")


class Silent:
    """Raises, whatever it is asked."""

    def _raise(self, *_: object) -> Any:
        raise RuntimeError("no")

    __str__ = __repr__ = __len__ = __iter__ = __bool__ = __eq__ = __format__ = __getattr__ = __lt__ = _raise  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class SilentText(str):
    __str__ = __repr__ = __len__ = __iter__ = __eq__ = __format__ = Silent._raise  # type: ignore[assignment]
    __hash__ = str.__hash__


class SilentList(list[Any]):
    __len__ = __iter__ = __repr__ = __getitem__ = Silent._raise  # type: ignore[assignment]


class SilentDict(dict[Any, Any]):
    __len__ = __iter__ = __repr__ = items = keys = Silent._raise  # type: ignore[assignment]


class SilentNumber(int):
    __str__ = __repr__ = __index__ = __int__ = __add__ = Silent._raise  # type: ignore[assignment]


class BadError(Exception):
    __str__ = __repr__ = Silent._raise  # type: ignore[assignment]


def _circle() -> list[Any]:
    value: list[Any] = [{}]
    value[0]["back"] = value
    return value


# Made by number: hypothesis writes what it draws from into its messages.
_TEXTS = (
    "x" * 100_000, "\ud800" * 40_000, "password=hunter2", "a=b,c=%zz", "%s %d", "", "\n", "\x00", "user.id=1", "traceparent",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "request.id",
)  # fmt: skip
_ODD: tuple[Callable[[], Any], ...] = (
    Silent, BadError, object, _circle, lambda: SilentText("a"), lambda: SilentList([1]), lambda: SilentDict(a=1),
    lambda: SilentNumber(5), lambda: deque([1, deque([2])]), lambda: (n for n in range(3)), lambda: b"x" * 100_000,
    lambda: {1, "a"}, lambda: OrderedDict(a=Silent()), lambda: bytearray(b"a"), lambda: memoryview(b"a"),
    lambda: range(10**12), lambda: list(range(100_000)), lambda: 1 << 100_000, lambda: 1 << 64, lambda: -(1 << 63),
    lambda: -(1 << 64), lambda: int, lambda: complex(1, 2), lambda: [[[[[[[[[[[1]]]]]]]]]]],
)  # fmt: skip
texts = st.text(st.characters(exclude_categories=()), max_size=30) | st.sampled_from(range(len(_TEXTS))).map(
    _TEXTS.__getitem__
)
odd = st.sampled_from(range(len(_ODD))).map(lambda number: _ODD[number]())
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=30)
values = st.recursive(
    scalars | odd,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts | st.integers() | st.none() | st.tuples(texts), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)
mappings = st.dictionaries(texts, values, max_size=5)


@pytest.fixture(scope="module", autouse=True)
def _bounded_attributes() -> Iterator[None]:
    undo = attributes.install()
    yield
    undo()


@pytest.fixture(scope="module", autouse=True)
def _our_propagators() -> Iterator[None]:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(
        Propagators([TraceContextTextMapPropagator(), W3CBaggagePropagator(), InboundBaggage()])
    )
    yield
    propagate.set_global_textmap(before)


class Ended(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(attributes.bounded(span))


class Emitted(LogRecordProcessor):
    def __init__(self) -> None:
        self.records: list[ReadableLogRecord] = []

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        record = log_record.log_record
        self.records.append(
            ReadableLogRecord(record, log_record.resource or Resource({}), log_record.instrumentation_scope)
        )

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


def _delivered(signal: Signal, items: Any) -> list[Payload]:
    """What leaves, all of it, each half down to single items."""
    encoded = encode(signal, items)
    assert not encoded.dropped
    for payload in encoded.payloads:
        assert _single(payload) == payload.items == count(signal, payload.body)
    return encoded.payloads


def _single(payload: Payload) -> int:
    halves = split(payload)
    if halves is None:
        return payload.items
    assert sum(half.items for half in halves) == payload.items
    return sum(map(_single, halves))


@fuzz
@given(st.dictionaries(st.sampled_from([*OPTIONS, "unknown"]), values, max_size=4))
def test_configure_raises_nothing_but_configuration_errors(options: dict[str, Any]) -> None:
    with suppress(otel_kit.ConfigurationError):
        otel_kit.configure(**{**options, "disabled": True})


@fuzz
@given(texts, values, values, mappings, values, texts)
def test_spans_take_anything(
    name: str, value: Any, event: Any, all_at_once: dict[str, Any], more: Any, description: str
) -> None:
    ended = Ended()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(ended)
    tracer = provider.get_tracer(name)
    span = tracer.start_span(name, attributes=all_at_once)
    span.set_attribute("it", value)
    span.set_attributes(all_at_once)
    span.add_event(name, {"it": event})
    span.add_event(name, all_at_once)
    span.add_link(SpanContext(1, 1, False), {"it": more})
    span.set_status(Status(StatusCode.ERROR, description))
    span.update_name(description)
    span.end()
    tracer.start_span("neighbour").end()
    [payload] = _delivered("traces", [redactor.span(one) for one in ended.spans])
    assert payload.items == 2


@fuzz
@given(values, st.lists(values, max_size=3), mappings, st.sampled_from([10, 20, 40, 55]), texts)
def test_log_records_take_anything(message: Any, args: list[Any], extra: dict[str, Any], level: int, name: str) -> None:
    emitted = Emitted()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(logs.RecordFields(Resource({})))
    provider.add_log_record_processor(emitted)
    capture = logs.Capture(provider)
    record = logging.LogRecord(name, level, "path", 1, message, (*args, None), None)
    record.__dict__.update({key: value for key, value in extra.items() if key not in vars(record)})
    capture.take(record)
    capture.take(logging.makeLogRecord({"msg": "neighbour", "levelno": 20}))
    [payload] = _delivered("logs", [redactor.record(one) for one in emitted.records])
    assert payload.items == 2


@fuzz
@given(texts, st.dictionaries(texts, values, max_size=4))
def test_audit_takes_anything(action: str, fields: dict[str, Any]) -> None:
    emitted = Emitted()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(emitted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "get_logger", provider.get_logger)
        otel_kit.audit(action, **fields)
        otel_kit.audit(5)  # type: ignore[arg-type]
        otel_kit.audit(Silent())  # type: ignore[arg-type]
    assert sum(payload.items for payload in _delivered("logs", [redactor.record(one) for one in emitted.records])) == 3


@fuzz
@given(values, mappings, st.integers(-(2**80), 2**80) | st.floats() | st.booleans())
def test_metrics_take_anything(value: Any, all_at_once: dict[str, Any], amount: float) -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("fuzz")
    counter, histogram, gauge = meter.create_counter("c"), meter.create_histogram("h"), meter.create_gauge("g")
    for fields in ({"it": value}, all_at_once):
        counter.add(amount, fields)
        histogram.record(amount, fields)
        gauge.set(amount, fields)
    meter.create_up_down_counter("neighbour").add(7)
    data = reader.get_metrics_data()
    assert data is not None
    payloads = _delivered("metrics", redactor.metrics(data))
    assert any(b"neighbour" in payload.body for payload in payloads)


carriers = st.dictionaries(
    st.sampled_from(["traceparent", "tracestate", "baggage", "otel-kit-previous-attempt"]) | texts, values, max_size=5
)


@fuzz
@given(carriers)
def test_headers_and_job_carriers_may_hold_anything(carrier: dict[str, Any]) -> None:
    job = Job("name", "id", "queue", "celery", carrier=carrier)
    found = propagation.extract(job)
    assert len(str(baggage.get_all(found))) < 100_000
    propagation.previous_attempt(job)
    for policy in ("auto", "parent", "link"):
        propagation.start_context(job, policy)
    token = attach(found)
    try:
        written: dict[str, str] = {}
        propagation.inject(written, Trigger.API)
    finally:
        detach(token)
    assert all(isinstance(text, str) for text in written.values())


@fuzz
@given(st.dictionaries(texts, values, max_size=5))
def test_baggage_of_anything_is_injected_as_far_as_it_can_be_written(entries: dict[str, Any]) -> None:
    context = Context()
    for name, value in {"good": "1", **entries}.items():
        context = baggage.set_baggage(name, value, context)
    token = attach(context)
    try:
        carrier: dict[str, str] = {}
        propagation.inject(carrier, Trigger.MANUAL)
    finally:
        detach(token)
    assert len(carrier.get("baggage", "")) <= 8192
    assert "good=1" in carrier["baggage"]


@fuzz
@given(st.text(max_size=5) | texts, values)
def test_redaction_takes_anything_and_a_second_pass_changes_nothing(key: str, value: Any) -> None:
    once = redactor.value(key, value)
    again = redactor.value(key, once)
    assert again is once or repr(again) == repr(once)
    for given_attributes in ({key: value}, {key: once}):
        redactor.attributes(given_attributes)


@fuzz
@given(values)
def test_plain_values_are_encodable_and_plain_again(value: Any) -> None:
    once = plain(value)
    assert repr(plain(once)) == repr(once)


@fuzz
@given(values, values)
def test_errors_of_any_kind_are_described(value: Any, note: Any) -> None:
    error = ValueError(value, Silent())
    error.__notes__ = note
    for one in (error, BadError(value)):
        assert isinstance(stacktrace(type(one), one, None), str)
        for describe in (errors.message, errors.stacktrace, errors.fingerprint, errors.category, errors.type_name):
            assert isinstance(describe(one), str)


@fuzz
@given(texts, st.integers(64, 100_000), st.sampled_from(["start", "both"]))
def test_a_cut_fits(text: str, limit: int, keep: Any) -> None:
    assert len(cut(text, limit, keep)) <= limit


@settings(fuzz, max_examples=40)
@given(st.lists(st.tuples(texts, texts, mappings), min_size=1, max_size=12), st.integers(300, 5_000))
def test_what_is_split_is_the_same_as_before(given_spans: list[tuple[str, str, dict[str, Any]]], limit: int) -> None:
    ended = Ended()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(ended)
    for number, (name, scope, fields) in enumerate(given_spans):
        provider.get_tracer(scope).start_span(name, attributes={**fields, "n": number}).end()
    spans = [redactor.span(span) for span in ended.spans]
    whole = encode("traces", spans)
    parts = encode("traces", spans, limit=limit)
    assert sum(payload.items for payload in parts.payloads) + sum(parts.dropped.values()) == len(spans)
    assert all(len(payload.body) <= limit for payload in parts.payloads)
    pending, single = list(whole.payloads), []
    while pending:
        payload = pending.pop(0)
        halves = split(payload)
        if halves is None:
            single.append(payload)
        else:
            pending[:0] = halves
    assert repr(_spans(single)) == repr(_spans(whole.payloads))


def _spans(payloads: list[Payload]) -> list[Any]:
    requests = (decode.ExportTraceServiceRequest.FromString(payload.body) for payload in payloads)
    return [span for request in requests for span in decode.spans(request)]


@pytest.mark.parametrize(
    "header",
    ["user=a\ud800", "\ud800=1,good=1", ["good=1", None, 5], "good=1" + ",x=1" * 10_000, b"good=1", {"good": 1}],
)
def test_odd_headers_are_read_as_far_as_they_are_texts(header: Any) -> None:
    carrier = {"baggage": header, "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    for found in (propagate.extract(carrier), propagation.extract(Job("n", "i", carrier=carrier))):
        assert trace.get_current_span(found).get_span_context().span_id == 0x00F067AA0BA902B7
        assert set(baggage.get_all(found)) <= {"user", "good", "?"}
