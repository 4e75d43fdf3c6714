"""Between the application's thread and ours: a queue bounded in items and in bytes, and a thread that packs what is in it.

The application's thread appends and goes on. It may be in a signal handler, or in a finalizer that a garbage collection runs
in the middle of this very code, so nothing here waits: the queue is a `queue.SimpleQueue`, whose ``put`` is reentrant, and
the one lock on that path is reentrant too and held for a few assignments.
"""

from __future__ import annotations

import copy
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk._logs import LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from otel_kit.guard import guard
from otel_kit.telemetry.attributes import bounded
from otel_kit.telemetry.context import silenced

_logger = logging.getLogger(__name__)
T = TypeVar("T")

#: What a span or a record weighs besides its texts: measured with `sys.getsizeof` over its parts, and rounded.
_ITEM_BYTES: Final = 1024
_VALUE_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a queue holds at most, and how it is emptied.

    Attributes:
        items: Spans or records in the queue (OTEL_BSP_MAX_QUEUE_SIZE, OTEL_BLRP_MAX_QUEUE_SIZE).
        batch: Items packed at once (..._MAX_EXPORT_BATCH_SIZE).
        delay: Seconds that an item waits at most for company (..._SCHEDULE_DELAY).
        size: Bytes of memory that the queue may hold.
    """

    items: int = 2048
    batch: int = 512
    delay: float = 5.0
    size: int = 16 * 1024 * 1024

    @classmethod
    def from_environment(cls, prefix: str, delay: float, size: int) -> Bounds:
        """Read the specification's variables; one that is not accepted is named and its default used.

        Args:
            prefix: ``OTEL_BSP`` or ``OTEL_BLRP``.
            delay: The specification's default for that signal, seconds.
            size: Bytes.
        """
        items = _whole(f"{prefix}_MAX_QUEUE_SIZE", 2048)
        batch = min(items, _whole(f"{prefix}_MAX_EXPORT_BATCH_SIZE", 512))
        return cls(items, batch, _whole(f"{prefix}_SCHEDULE_DELAY", int(delay * 1000)) / 1000, size)


def _whole(variable: str, default: int) -> int:
    given = os.environ.get(variable, "").strip()
    if not given:
        return default
    if given.isdecimal() and 0 < int(given) <= 86_400_000:
        return int(given)
    _logger.error(
        "otel-kit: %s=%r is not accepted; accepted: a whole number above 0. Going on with %d", variable, given, default
    )
    return default


class Batcher(Generic[T]):
    """The queue and its thread.

    Args:
        name: For the thread's name.
        pack: Called on our thread with what waits, `Bounds.batch` items at most; it must not wait for a network.
        weigh: Bytes of memory that an item holds, about.
        bounds: Limits.
        on_full: Called with the number of items that found no room.
    """

    def __init__(
        self,
        name: str,
        pack: Callable[[list[T]], None],
        weigh: Callable[[T], int],
        bounds: Bounds,
        on_full: Callable[[int], None],
    ) -> None:
        self._name = name
        self._pack = pack
        self._weigh = weigh
        self.bounds = bounds
        self._on_full = on_full
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """What waits in the parent's queue is the parent's to send; its locks may be held by threads that are gone."""
        self._queue: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._packing = threading.Lock()
        self._bytes = 0
        self._awake = False
        self._thread: threading.Thread | None = None

    def renew(self) -> None:
        """Go on with a new thread, queue and locks; what waits, waits in the new queue."""
        waiting = self._queue
        self.reset_after_fork()
        with suppress(queue.Empty):
            while True:
                self.put(waiting.get_nowait()[1])

    @property
    def items(self) -> int:
        """Items that wait now."""
        return self._queue.qsize()

    @property
    def size(self) -> int:
        """Bytes that they hold, about."""
        return self._bytes

    def put(self, item: T) -> None:
        """Queue one item; where there is no room it is counted and gone. Never waits, never raises."""
        weight = self._weigh(item)
        thread = None
        with self._lock:
            waiting = self._queue.qsize()
            full = waiting >= self.bounds.items or self._bytes + weight > self.bounds.size
            if not full:
                self._bytes += weight
                self._queue.put((weight, item))
            due = not self._awake and (full or waiting + 1 >= self.bounds.batch or self._bytes >= self.bounds.size // 4)
            self._awake = self._awake or due
            if self._thread is None:
                self._thread = thread = threading.Thread(
                    target=self._run, name=f"otel-kit-pack-{self._name}", daemon=True
                )
        if thread is not None:
            # None starts while the interpreter ends (since Python 3.12); the last flush packs what is left.
            with suppress(RuntimeError):
                thread.start()
        if due:
            self._wake.put(None)
        if full:
            self._on_full(1)

    def flush(self, timeout: float) -> bool:
        """Pack everything that waits, on the caller's thread.

        Returns:
            False when another thread was packing for all of ``timeout`` seconds.
        """
        if not self._packing.acquire(timeout=max(0.0, timeout)):
            return False
        try:
            self._pack_all()
        finally:
            self._packing.release()
        return True

    def _run(self) -> None:
        # What happens here is not the application's: no span of it, no record of it.
        with silenced(), suppress_instrumentation():
            wake = self._wake
            while wake is self._wake:
                with suppress(queue.Empty):
                    wake.get(timeout=self.bounds.delay)
                self.flush(self.bounds.delay)

    def _pack_all(self) -> None:
        # What is there now, not what comes meanwhile: an application that never pauses must not keep a flush for ever.
        left = self._queue.qsize()
        while left > 0:
            batch, weight = self._take(min(left, self.bounds.batch))
            left -= len(batch)
            with self._lock:
                self._awake = False
                # An update that a signal handler cut in two heals when nothing waits.
                self._bytes = max(0, self._bytes - weight) if self._queue.qsize() else 0
            if not batch:
                return
            with guard(f"packing {self._name}"):
                self._pack(batch)

    def _take(self, number: int) -> tuple[list[T], int]:
        batch, total = [], 0
        for _ in range(number):
            try:
                weight, item = self._queue.get_nowait()
            except queue.Empty:
                break
            batch.append(item)
            total += weight
        return batch, total


def _weight_of(attributes: Mapping[str, Any] | None) -> int:
    if not attributes:
        return 0
    total = 0
    for key, value in attributes.items():
        total += _VALUE_BYTES + len(key)
        if isinstance(value, (str, bytes)):
            total += len(value)
        elif isinstance(value, (tuple, list, dict)):
            total += _weight_inside(value)
    return total


def _weight_inside(value: Any, depth: int = 4) -> int:
    if isinstance(value, (str, bytes)):
        return _VALUE_BYTES + len(value)
    if depth == 0 or not isinstance(value, (tuple, list, Mapping)):
        return _VALUE_BYTES
    inside = value.values() if isinstance(value, Mapping) else value
    return _VALUE_BYTES + sum(_weight_inside(item, depth - 1) for item in inside)


def weigh_span(span: ReadableSpan) -> int:
    """Bytes of memory that a finished span holds, about."""
    total = _ITEM_BYTES + _weight_of(span.attributes)
    for event in span.events:
        total += _ITEM_BYTES // 4 + _weight_of(event.attributes)
    return total + (_ITEM_BYTES // 4) * len(span.links)


def weigh_record(record: ReadableLogRecord) -> int:
    """Bytes of memory that a log record holds, about."""
    log = record.log_record
    return _ITEM_BYTES + _weight_inside(log.body) + _weight_of(log.attributes)


class SpanQueue(SpanProcessor):
    """Queues finished spans that are sampled."""

    def __init__(self, batcher: Batcher[ReadableSpan]) -> None:
        self._batcher = batcher

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            with guard("queueing a span"):
                self._batcher.put(bounded(span))

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """A span is of interest when it has ended."""

    def shutdown(self) -> None:
        """Pack what waits; what is packed, the pipeline sends or keeps."""
        self._batcher.flush(self._batcher.bounds.delay)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._batcher.flush(timeout_millis / 1000)


class LogQueue(LogRecordProcessor):
    """Queues log records."""

    def __init__(self, batcher: Batcher[ReadableLogRecord]) -> None:
        self._batcher = batcher

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        with guard("queueing a log record"):
            # A copy without its context: that may hold the whole request, and later processors may still change the record.
            record = copy.copy(log_record.log_record)
            record.context = Context()
            self._batcher.put(
                ReadableLogRecord(
                    log_record=record,
                    resource=log_record.resource or Resource.get_empty(),
                    instrumentation_scope=log_record.instrumentation_scope,
                    limits=log_record.limits,
                )
            )

    def shutdown(self) -> None:
        """Pack what waits; what is packed, the pipeline sends or keeps."""
        self._batcher.flush(self._batcher.bounds.delay)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._batcher.flush(timeout_millis / 1000)
