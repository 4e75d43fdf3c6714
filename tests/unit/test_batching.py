"""The queue between the application and our threads: bounded, in order, and never in the way."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_kit.telemetry.batching import Batcher, Bounds, weigh_span

#: Nothing is packed but by a flush.
STILL = {"batch": 10**6, "delay": 3600.0}


def batcher(packed: list[list[Any]], lost: list[int], **bounds: Any) -> Batcher[Any]:
    return Batcher("test", packed.append, lambda item: item, Bounds(**{**STILL, **bounds}), lost.append)


def test_items_come_out_in_order_in_batches_of_the_size_asked_for() -> None:
    packed: list[list[int]] = []
    queue = batcher(packed, [], batch=4, items=100)
    for n in range(1, 11):
        queue.put(n)
    assert queue.flush(5.0)
    assert [n for batch in packed for n in batch] == list(range(1, 11))
    assert max(map(len, packed)) <= 4


def test_no_more_items_wait_than_asked_for_and_those_without_room_are_counted() -> None:
    packed: list[list[int]] = []
    lost: list[int] = []
    queue = batcher(packed, lost, items=3)
    queue._packing.acquire()  # the packer is busy
    for n in range(1, 6):
        queue.put(n)
    assert queue.items == 3
    assert lost == [1, 1]
    queue._packing.release()
    queue.flush(5.0)
    assert [n for batch in packed for n in batch] == [1, 2, 3]


def test_no_more_bytes_wait_than_asked_for() -> None:
    packed: list[list[int]] = []
    lost: list[int] = []
    queue = batcher(packed, lost, size=1000)
    queue._packing.acquire()
    for weight in (600, 300, 200, 100):
        queue.put(weight)
    assert queue.size == 1000
    assert lost == [1], "the third was too much, the fourth fits again"
    queue._packing.release()
    queue.flush(5.0)
    assert queue.size == 0
    assert [n for batch in packed for n in batch] == [600, 300, 100]


def test_full_batch_is_packed_without_waiting_for_the_delay() -> None:
    packed: list[list[int]] = []
    done = threading.Event()

    def pack(batch: list[int]) -> None:
        packed.append(batch)
        done.set()

    queue = Batcher("test", pack, lambda _: 1, Bounds(batch=5, delay=3600.0), lambda _: None)
    for n in range(5):
        queue.put(n)
    assert done.wait(10)
    assert packed == [[0, 1, 2, 3, 4]]


def test_flush_ends_although_the_application_never_pauses() -> None:
    stop = threading.Event()
    queue = batcher([], [], batch=10, items=10**6)

    def never_pauses() -> None:
        while not stop.is_set():
            queue.put(1)

    thread = threading.Thread(target=never_pauses)
    thread.start()
    try:
        assert queue.flush(10.0)
    finally:
        stop.set()
        thread.join()


def test_finalizer_that_queues_in_the_middle_of_queueing_neither_hangs_nor_upsets_the_count() -> None:
    packed: list[list[int]] = []
    queue = batcher(packed, [], items=10**6, size=10**9)

    class Parting:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            queue.put(1)

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(300):
            Parting()
            queue.put(1)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    queue.flush(5.0)
    assert sum(map(len, packed)) == 600
    assert queue.size == 0


def test_child_of_a_fork_starts_with_an_empty_queue_although_locks_were_held() -> None:
    queue = batcher([], [], items=10)
    queue.put(1)
    queue._lock.acquire()
    queue._packing.acquire()
    queue.reset_after_fork()
    assert (queue.items, queue.size) == (0, 0)
    queue.put(1)
    assert queue.flush(1.0)


@pytest.mark.parametrize("given", ["0", "-1", "many", "1.5"])
def test_bound_that_is_not_accepted_is_named_and_its_default_used(
    given: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", given)
    assert Bounds.from_environment("OTEL_BSP", 5.0, 2**20).items == 2048
    assert f"OTEL_BSP_MAX_QUEUE_SIZE={given!r} is not accepted" in caplog.text


def test_bounds_are_the_specifications_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BLRP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", "250")
    # A batch is no larger than the queue, whatever is asked for.
    assert Bounds.from_environment("OTEL_BLRP", 1.0, 2**20) == Bounds(items=100, batch=100, delay=0.25, size=2**20)


def test_span_weighs_what_its_texts_weigh() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    tracer.start_span("light").end()
    heavy = tracer.start_span("heavy", attributes={"body": "x" * 5_000_000, "parts": ["y" * 1000] * 10})
    heavy.add_event("e", {"more": "z" * 100_000})
    heavy.end()
    light, weighed = map(weigh_span, exporter.get_finished_spans())
    assert light < 4096
    assert 5_110_000 < weighed < 5_120_000
    provider.shutdown()
