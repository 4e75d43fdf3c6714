"""Attributes of any kind are taken from the application's thread without a raise, a wait or a copy that has no end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from opentelemetry import attributes as upstream
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.trace import Status, StatusCode

from otel_kit.telemetry import attributes, reentrancy
from otel_kit.telemetry.limits import MAX_ITEMS, MAX_KEY, MAX_TEXT
from otel_kit.telemetry.redaction import Redactor


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    undo = attributes.install()
    yield
    undo()


def _span(**limits: int) -> Any:
    provider = TracerProvider(shutdown_on_exit=False, span_limits=SpanLimits(**limits) if limits else None)
    return provider.get_tracer("test").start_span("span")


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Named:
    def __str__(self) -> str:
        return "named"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("a", "a"), (1, 1), (True, True), (2.5, 2.5), (b"x", b"x"), (["a", "b"], ("a", "b")), ((1, 2), (1, 2)),
        (Named(), "named"), (bytearray(b"x"), b"x"), ([[1], [2]], ((1,), (2,))),
        (Unreadable(), "<Unreadable, whose str() raises RuntimeError>"),
    ],
)  # fmt: skip
def test_a_value_is_kept_in_the_form_that_the_sdk_keeps(value: Any, kept: Any) -> None:
    span = _span()
    span.set_attribute("one", value)
    span.set_attributes({"two": value})
    span.add_event("event", {"three": value})
    assert span.attributes["one"] == span.attributes["two"] == span.events[0].attributes["three"] == kept


def test_what_has_neither_name_nor_text_is_left_out() -> None:
    span = _span()
    span.set_attributes({"": 1, "object": object(), "good": 1})
    assert {key: value for key, value in span.attributes.items() if value is not None} == {"good": 1}


@pytest.mark.parametrize("kind", [dict, MappingProxyType, lambda given: upstream.BoundedAttributes(attributes=given)])
def test_all_attributes_at_once_are_as_many_as_the_limit_allows_whatever_holds_them(kind: Any) -> None:
    span = _span(max_span_attributes=500)
    span.set_attributes(kind({f"k{n}": n for n in range(600)}))
    assert len(span.attributes) == 500
    assert span.dropped_attributes == 100


def test_a_mapping_as_a_value_is_cut_visibly() -> None:
    span = _span()
    span.set_attribute("one", {str(n): n for n in range(1000)})
    span.set_attributes({"two": {str(n): n for n in range(1000)}})
    for key in ("one", "two"):
        assert len(span.attributes[key]) == MAX_ITEMS
        assert span.attributes[key]["..."] == f"[cut {1001 - MAX_ITEMS} items]"


def test_texts_lists_and_keys_are_cut_where_they_are_set() -> None:
    span = _span()
    span.set_attributes({"text": "x" * 1_000_000, "list": list(range(1000)), "k" * 100_000: 1})
    assert len(span.attributes["text"]) <= MAX_TEXT
    assert len(span.attributes["list"]) == MAX_ITEMS
    assert max(map(len, Redactor().attributes(span.attributes) or {})) <= MAX_KEY


def test_the_configured_length_of_texts_counts() -> None:
    span = _span(max_attribute_length=5)
    span.set_attributes({"text": "abcdefgh", "list": ["abcdefgh"]})
    span.set_attribute("one", "abcdefgh")
    assert span.attributes == {"text": "abcde", "list": ("abcde",), "one": "abcde"}


def test_cyclic_and_shared_values_end_quickly() -> None:
    cyclic: list[Any] = []
    cyclic += [cyclic, {"me": cyclic}]
    shared: list[Any] = ["x" * 1000]
    for _ in range(30):
        shared = [shared] * 20
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    span = _span()
    began = time.process_time()
    for value in (cyclic, shared, deep):
        span.set_attribute("it", value)
        span.set_attributes({"it": value})
    assert time.process_time() - began < 2
    assert "cut" in str(span.attributes["it"])


def test_attributes_that_another_thread_changes_are_taken_all_the_same() -> None:
    shared = {f"k{n}": n for n in range(100)}
    stop = threading.Event()

    def change() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            shared[f"more{n % 50}"] = n
            shared.pop(f"more{(n + 25) % 50}", None)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(50):
            span = _span()
            span.set_attributes(shared)
            assert span.attributes["k7"] == 7
    finally:
        stop.set()
        thread.join(10)


def test_a_hundred_thousand_attributes_cost_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    span = _span()
    with caplog.at_level(logging.DEBUG, logger="somebody"):
        began = time.process_time()
        span.set_attributes({f"k{n}": n for n in range(100_000)})
        span.set_attribute("odd", Named())
        assert time.process_time() - began < 2
    assert caplog.records == []
    assert span.dropped_attributes == 100_001 - 128


def test_a_logging_handler_that_touches_the_span_does_not_wait_for_its_lock() -> None:
    span = _span()

    class Touching(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            span.add_event("logged")

    handler = Touching()
    logging.getLogger("opentelemetry").addHandler(handler)
    try:
        worker = threading.Thread(target=lambda: span.set_attributes({f"k{n}": n for n in range(200)}), daemon=True)
        worker.start()
        worker.join(5)
        assert not worker.is_alive()
    finally:
        logging.getLogger("opentelemetry").removeHandler(handler)


def test_measurements_are_taken_with_attributes_of_any_kind() -> None:
    reader = InMemoryMetricReader()
    counter = MeterProvider([reader], shutdown_on_exit=False).get_meter("test").create_counter("c")
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    for value in (Unreadable(), cyclic, ["a", 1], {"k": [1]}, "x" * 1_000_000):
        counter.add(1, {"it": value})
    data = reader.get_metrics_data()
    assert data is not None
    assert len(data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points) == 5


def test_it_can_be_taken_back() -> None:
    undo = attributes.install()
    undo()
    attributes.install()()
    span = _span()
    span.set_attribute("it", {"a": 1})
    assert isinstance(span.attributes["it"], Mapping)


def test_long_names_and_descriptions_of_an_ended_span_are_cut_and_short_ones_left_alone() -> None:
    short = _span()
    short.end()
    readable = short._readable_span()
    assert attributes.bounded(readable) is readable
    long = _span()
    for n in range(200):
        long.add_event("e" * 100_000 if n == 199 else "e", {f"k{k}": k for k in range(130)})
    long.update_name("n" * 1_000_000)
    long.set_status(Status(StatusCode.ERROR, "d" * 1_000_000))
    long.end()
    cut = attributes.bounded(long._readable_span())
    assert max(len(cut.name), len(cut.status.description or ""), *(len(event.name) for event in cut.events)) <= MAX_TEXT
    assert "... [cut " in cut.name
    assert cut.dropped_events == 72
    assert cut.events[-1].dropped_attributes == 2


def test_locks_of_providers_that_are_made_later_are_reentrant() -> None:
    undo = reentrancy.install()
    try:
        provider = LoggerProvider(shutdown_on_exit=False)
        reader = InMemoryMetricReader()
        meters = MeterProvider([reader], shutdown_on_exit=False)
        meters.get_meter("m").create_counter("c").add(1)
        [storage] = meters._measurement_consumer._reader_storages.values()
        [[match]] = storage._instrument_view_instrument_matches.values()
        [aggregation] = match._attributes_aggregation.values()
    finally:
        undo()
    for lock in (
        provider._logger_cache_lock, provider._active_loggers_lock, match._lock, aggregation._lock,
        meters._measurement_consumer._lock,
    ):  # fmt: skip
        assert isinstance(lock, type(threading.RLock()))
    assert isinstance(LoggerProvider(shutdown_on_exit=False)._logger_cache_lock, type(threading.Lock()))
