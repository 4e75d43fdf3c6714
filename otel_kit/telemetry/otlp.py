"""The OTLP road of this process, put together: queue, encoding, pipeline, spool, for each signal."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk._logs import LogRecordProcessor, ReadableLogRecord
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otel_kit import catalogue
from otel_kit.lifecycle import lifecycle
from otel_kit.settings import Settings
from otel_kit.telemetry import instruments, transport
from otel_kit.telemetry.apart import is_apart
from otel_kit.telemetry.batching import Batcher, Bounds, LogQueue, SpanQueue, weigh_record, weigh_span
from otel_kit.telemetry.delivery import Pipeline
from otel_kit.telemetry.encoding import encode
from otel_kit.telemetry.ledger import Ledger
from otel_kit.telemetry.outage import Outage
from otel_kit.telemetry.payload import Answer, Cause, Signal, Verdict
from otel_kit.telemetry.redaction import Redactor
from otel_kit.telemetry.slots import Slot, Slots
from otel_kit.telemetry.spool import DiskSpool, MemorySpool, SpoolUnusable, Store, default_root, open_root
from otel_kit.telemetry.spool.folder import folder_name
from otel_kit.telemetry.spool.root import close_to_others
from otel_kit.telemetry.totals import begin_earlier

_logger = logging.getLogger(__name__)

#: Exporter names that mean this road, and the protocol that they insist on.
_PROTOCOLS: Final = {"otlp": None, "otlp_proto_http": "http/protobuf", "otlp_proto_grpc": "grpc"}
_COMPONENTS: Final[dict[Signal, str]] = {"traces": "span", "metrics": "metric", "logs": "log"}


def is_otlp(name: str) -> bool:
    """Whether an exporter's name means OTLP."""
    return name.lower() in _PROTOCOLS


class Otlp:
    """The pipelines of this process.

    Args:
        settings: Where to, how much is kept, and where.
        resource: Who sends.
        redactor: Takes secrets out, on our threads.
    """

    def __init__(self, settings: Settings, resource: Resource, redactor: Redactor) -> None:
        self._settings = settings
        self._resource = resource
        self._redactor = redactor
        self._ledger = Ledger()
        self._root = _open_spool(settings)
        self._outage = Outage(
            transport.destination(settings, "traces").shown,
            "is kept on disk and sent later" if self._root else "is kept in memory and sent later",
        )
        self._slots = _open_slots(self._root, self._service()) if self._root else None
        self._pipelines: dict[Signal, Pipeline] = {}
        self._batchers: dict[Signal, Batcher[Any]] = {}
        self._stores: dict[Signal, Store] = {}
        self._duration = instruments.histogram(catalogue.EXPORT_DURATION)
        self._forked = False
        self._held: Slot | None = None

    def spans(self, name: str) -> SpanProcessor | None:
        """Where finished spans go, for an exporter's name."""
        pipeline = self._pipeline("traces", name)
        if pipeline is None:
            return None
        redact = self._redactor.span

        def pack(batch: list[ReadableSpan]) -> None:
            self._encode(pipeline, "traces", [redact(span) for span in batch])

        return SpanQueue(
            self._batcher("traces", pack, weigh_span, Bounds.from_environment("OTEL_BSP", 5.0, self._room))
        )

    def records(self, name: str) -> LogRecordProcessor | None:
        """Where log records go, for an exporter's name."""
        pipeline = self._pipeline("logs", name)
        if pipeline is None:
            return None
        redact = self._redactor.record

        def pack(batch: list[ReadableLogRecord]) -> None:
            self._encode(pipeline, "logs", [redact(record) for record in batch])

        return LogQueue(
            self._batcher("logs", pack, weigh_record, Bounds.from_environment("OTEL_BLRP", 1.0, self._room))
        )

    def points(self, name: str) -> MetricExporter | None:
        """What a periodic reader hands its collections to, for an exporter's name."""
        preferred = OTLPMetricExporter(endpoint="http://127.0.0.1")  # reads the variables that say so; sends nothing
        preferred.shutdown()
        temporality = preferred._preferred_temporality or {}  # noqa: SLF001
        cumulative = AggregationTemporality.DELTA not in temporality.values()
        pipeline = self._pipeline("metrics", name, cumulative=cumulative)
        return None if pipeline is None else PointExporter(preferred, lambda data: self._collected(pipeline, data))

    def observe(self) -> None:
        """Report on ourselves."""
        ledger = self._ledger
        instruments.observed_counter(catalogue.DELIVERED, ledger.observe_delivered)
        instruments.observed_counter(catalogue.REPLAYED, ledger.observe_replayed)
        instruments.observed_counter(catalogue.RESENT, ledger.observe_resent)
        instruments.observed_counter(catalogue.DROPPED, ledger.observe_dropped)
        instruments.observed_gauge(
            catalogue.QUEUE_BYTES,
            lambda: [(float(batcher.size), {catalogue.SIGNAL: signal}) for signal, batcher in self._batchers.items()],
        )
        instruments.observed_gauge(
            catalogue.SPOOL_BYTES,
            lambda: [(float(store.size()), {catalogue.SIGNAL: signal}) for signal, store in self._stores.items()],
        )
        if "traces" in self._batchers:
            spans = self._batchers["traces"]
            _observe_queue(spans, catalogue.SPAN_QUEUE_SIZE, catalogue.SPAN_QUEUE_CAPACITY, "batching_span_processor")
        if "logs" in self._batchers:
            records = self._batchers["logs"]
            _observe_queue(records, catalogue.LOG_QUEUE_SIZE, catalogue.LOG_QUEUE_CAPACITY, "batching_log_processor")

    def start(self) -> None:
        """Start sending what was kept by this service's processes before, or is by those that this one forks."""
        for pipeline in self._pipelines.values():
            pipeline.start()

    def flush(self, signal: Signal, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until what waits is sent. False where some of it was kept for later."""
        pipeline = self._pipelines.get(signal)
        return pipeline.flush(timeout) if pipeline is not None else True

    def hand_over(self, signal: Signal) -> None:
        """From now on keep what comes, for a process that outlives this one to send."""
        if signal in self._pipelines:
            self._pipelines[signal].hand_over()

    def close(self, signal: Signal, timeout: float) -> bool:
        """Send what is left, and keep what cannot be sent within ``timeout`` seconds."""
        pipeline = self._pipelines.get(signal)
        return pipeline.close(timeout) if pipeline is not None else True

    def wait_closed(self, signals: Iterable[Signal], timeout: float) -> None:
        """Wait at most ``timeout`` seconds until the pipelines of these signals are closed."""
        deadline = time.monotonic() + timeout
        for signal in signals:
            if signal in self._pipelines:
                self._pipelines[signal].wait_closed(deadline - time.monotonic())

    def abandon(self) -> None:
        """Keep whatever is left, now: the budget is spent, and something of the SDK's or the application's still hangs."""
        for signal, pipeline in self._pipelines.items():
            if signal in self._batchers:
                self._batchers[signal].flush(0.0)
            pipeline.close(0.0)

    @property
    def continues(self) -> bool:
        """Whether this process's metrics go on with the totals of the one before it."""
        return self._slot() is not None

    @property
    def folder(self) -> Path | None:
        """What this service's processes keep for each other besides; None where nothing is kept on disk."""
        return None if self._root is None else self._root / folder_name(self._service())

    @property
    def durable(self) -> bool:
        """Whether what is kept outlives this process."""
        return self._root is not None

    def reset_after_fork(self) -> None:
        """A child starts with nothing of its parent's: queues, locks, connections, slots."""
        self._forked, self._held = True, None
        self._outage.reset_after_fork()
        self._ledger.reset_after_fork()
        if self._slots is not None:
            self._slots.reset_after_fork()
        for batcher in self._batchers.values():
            batcher.reset_after_fork()
        for pipeline in self._pipelines.values():
            pipeline.reset_after_fork()

    @property
    def _room(self) -> int:
        return self._settings.queue_bytes

    def _service(self) -> str:
        named = (catalogue.SERVICE_NAMESPACE, catalogue.SERVICE_NAME, catalogue.ENVIRONMENT)
        return "/".join(str(self._resource.attributes.get(name, "")) for name in named)

    def _pipeline(self, signal: Signal, name: str, *, cumulative: bool = False) -> Pipeline | None:
        if signal in self._pipelines:
            return None  # named twice
        protocol = _PROTOCOLS[name.lower()]
        settings = replace(self._settings, protocol=protocol) if protocol else self._settings
        sender = transport.build(settings, signal)
        if sender is None:
            return None
        destination = transport.destination(settings, signal)
        if self._root is None:
            store: Store = MemorySpool(signal, limit=self._room, on_drop=self._ledger.dropped)
        else:
            store = DiskSpool(
                self._root,
                self._service(),
                signal,
                destination.fingerprint,
                limit=settings.spool_bytes,
                on_drop=self._ledger.dropped,
            )
        component = f"otlp_{'grpc' if settings.protocol == 'grpc' else 'http'}_{_COMPONENTS[signal]}_exporter"
        self._stores[signal] = store
        self._pipelines[signal] = Pipeline(
            signal,
            destination.shown,
            sender,
            store,
            durable=self.durable,
            ledger=self._ledger,
            outage=self._outage,
            cumulative=cumulative,
            # What a child finds there, its parent sends; a child that ended in the middle of it would have it sent twice.
            replays=lambda: not lifecycle.outlived,
            on_attempt=lambda seconds, answer: self._attempted(component, seconds, answer),
        )
        return self._pipelines[signal]

    def _attempted(self, component: str, seconds: float, answer: Answer) -> None:
        attributes = {catalogue.COMPONENT_TYPE: component}
        if answer.verdict is not Verdict.DELIVERED:
            attributes[catalogue.ERROR_TYPE] = answer.status
        self._duration.record(seconds, attributes)

    def _batcher(self, signal: Signal, pack: Callable[[list[Any]], None], weigh: Any, bounds: Bounds) -> Batcher[Any]:
        batcher = Batcher(signal, pack, weigh, bounds, lambda n: self._ledger.dropped(signal, Cause.QUEUE_FULL, n))
        self._batchers[signal] = batcher
        return batcher

    def _encode(self, pipeline: Pipeline, signal: Signal, items: Sequence[Any]) -> None:
        encoded = encode(signal, items)
        for cause, number in encoded.dropped.items():
            self._ledger.dropped(signal, cause, number)
        pipeline.put(encoded.payloads)

    def _collected(self, pipeline: Pipeline, data: MetricsData) -> None:
        # What is not this process's has no totals to continue.
        slot = self._slot() if not is_apart(data) else None
        encoded = encode("metrics", self._redactor.metrics(data), amend=slot.amend if slot else _begun_earlier)
        for cause, number in encoded.dropped.items():
            self._ledger.dropped("metrics", cause, number)
        pipeline.put(encoded.payloads)

    def renew(self) -> None:
        """Go on with new threads, locks and connections."""
        for batcher in self._batchers.values():
            batcher.renew()
        for pipeline in self._pipelines.values():
            pipeline.renew()

    def _slot(self) -> Slot | None:
        """A child's place in the service's series; a process that nobody started as his child keeps its own identity."""
        if self._slots is None or not (self._forked or _is_a_child()):
            return None
        if self._held is None:
            self._held = self._slots.take(self._resource.attributes)
        return self._held


def _is_a_child() -> bool:
    """Whether multiprocessing started this process, by whatever method; uvicorn's workers are such, too."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def _begun_earlier(request: ExportMetricsServiceRequest) -> ExportMetricsServiceRequest:
    begin_earlier(request)
    return request


class PointExporter(MetricExporter):
    """Hands collections on; it never waits, and never fails."""

    def __init__(self, preferred: OTLPMetricExporter, collected: Callable[[MetricsData], None]) -> None:
        # The reader asks the exporter for these; the SDK has no public way to pass them on.
        super().__init__(
            preferred_temporality=preferred._preferred_temporality,  # noqa: SLF001
            preferred_aggregation=preferred._preferred_aggregation,  # noqa: SLF001
        )
        self._collected = collected
        self._only: int | None = None

    def leave_out_other_threads(self) -> None:
        """From now on take collections of this system thread only: greenlets all run in one, and it is theirs now."""
        self._only = threading.get_native_id()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_kwargs: Any) -> MetricExportResult:  # noqa: ARG002
        if self._only in (None, threading.get_native_id()):
            self._collected(metrics_data)
        return MetricExportResult.SUCCESS

    def shutdown(self, timeout_millis: float = 30_000, **_kwargs: Any) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: float = 10_000) -> bool:  # noqa: ARG002
        """Nothing is held."""
        return True


def _observe_queue(
    batcher: Batcher[Any], size: catalogue.Instrument, capacity: catalogue.Instrument, kind: str
) -> None:
    attributes = {catalogue.COMPONENT_TYPE: kind}
    instruments.observed_level(size, lambda: [(float(batcher.items), attributes)])
    instruments.observed_level(capacity, lambda: [(float(batcher.bounds.items), attributes)])


def _open_spool(settings: Settings) -> Path | None:
    if not settings.spool:
        return None
    asked = settings.spool_dir
    try:
        return open_root(Path(asked).expanduser() if asked else default_root())
    except SpoolUnusable as unusable:
        _logger.warning(
            "otel-kit: nothing can be kept on disk: %s (OTEL_KIT_SPOOL_DIR; OTEL_KIT_SPOOL=off does without). "
            "What the collector cannot take waits in memory, and is lost when the process ends",
            unusable,
        )
        return None


def _open_slots(root: Path, service: str) -> Slots | None:
    directory = root / folder_name(service) / "slots"
    try:
        close_to_others(directory)
    except SpoolUnusable as unusable:
        _logger.warning("otel-kit: forked processes' metrics get identities of their own: %s", unusable)
        return None
    return Slots(directory)
