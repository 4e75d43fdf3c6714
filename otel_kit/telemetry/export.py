"""Exporters: found by name, rebuilt after a fork, redacted before they send, and quiet about an outage.

Which exporters there are is the specification's business (OTEL_TRACES_EXPORTER and its sisters) and the installed
packages': they are looked up among the entry points that those packages declare.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricReader, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_kit.guard import guard
from otel_kit.settings import Settings
from otel_kit.telemetry.context import silenced
from otel_kit.telemetry.redaction import Redactor

_logger = logging.getLogger(__name__)

_ENTRY_POINT_NAMES = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_DEFAULT_ENDPOINTS = {"http/protobuf": "http://127.0.0.1:4318", "grpc": "http://127.0.0.1:4317"}
_UPSTREAM_LOGGERS = (
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
)

E = TypeVar("E", bound=SpanExporter | MetricExporter | LogRecordExporter)


def endpoint_of(settings: Settings, signal: str, protocol: str) -> str:
    """Where a signal goes: its own variable (used as it is, path included), else the common endpoint, else the default."""
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "").strip()
    if own:
        return own
    base = settings.endpoint or _DEFAULT_ENDPOINTS[protocol]
    if protocol == "grpc":
        return base
    return f"{'' if '://' in base else 'http://'}{base.rstrip('/')}/v1/{signal}"


def factories(settings: Settings, signal: str, names: Sequence[str]) -> list[Callable[[], Any]]:
    """Functions that build the exporters of one signal (``traces``, ``metrics``, ``logs``).

    A name that nobody offers is named in one log line and left out: an operator's typing error must not stop a service.
    """
    found = []
    for name in names:
        if name.lower() == "none":
            continue
        factory = _otlp(settings, signal) if name == "otlp" else _load(signal, name)
        if factory is None:
            accepted = sorted({"otlp", "none", *(entry.name for entry in _offered(signal))})
            _logger.error(
                "otel-kit: OTEL_%s_EXPORTER names %r, which no installed package offers; accepted: %s. Left out",
                signal.upper(), name, ", ".join(accepted),
            )  # fmt: skip
            continue
        found.append(factory)
    return found


def _offered(signal: str) -> list[Any]:
    return list(entry_points(group=f"opentelemetry_{signal}_exporter"))


def _load(signal: str, name: str) -> Callable[..., Any] | None:
    for entry in _offered(signal):
        if entry.name == name:
            with guard(f"loading the exporter {name!r} for {signal}"):
                loaded: Callable[..., Any] = entry.load()
                return loaded
    return None


def _otlp(settings: Settings, signal: str) -> Callable[[], Any] | None:
    protocol = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "").strip() or settings.protocol
    if protocol not in _ENTRY_POINT_NAMES:
        _logger.error(
            "otel-kit: OTEL_EXPORTER_OTLP_%s_PROTOCOL=%r is not accepted; accepted: %s. Going on with %r",
            signal.upper(), protocol, " or ".join(_ENTRY_POINT_NAMES), settings.protocol,
        )  # fmt: skip
        protocol = settings.protocol
    exporter = _load(signal, _ENTRY_POINT_NAMES[protocol])
    if exporter is None:
        _logger.error(
            "otel-kit: protocol 'grpc' needs the extra: pip install 'otel-kit[grpc]'. Going on with http/protobuf"
        )
        protocol = "http/protobuf"
        exporter = _load(signal, _ENTRY_POINT_NAMES[protocol])
    if exporter is None:
        return None
    build = exporter
    endpoint = endpoint_of(settings, signal, protocol)
    headers = dict(settings.headers) if settings.headers else None
    # A scheme says whether TLS is meant; without one the gRPC exporter asks OTEL_EXPORTER_OTLP_INSECURE.
    plain = {"http": True, "https": False}.get(endpoint.partition("://")[0])
    extra: dict[str, Any] = {"insecure": plain} if protocol == "grpc" else {}
    return lambda: build(endpoint=endpoint, headers=headers, **extra)


class Outage:
    """Says once that telemetry does not get through, and once that all of it does again.

    Args:
        destination: Where it goes, for the message.
    """

    def __init__(self, destination: str) -> None:
        self._destination = destination
        self._lock = threading.Lock()
        # By signal: a receiver may take the one and refuse the other for ever.
        self._failing: set[str] = set()
        self._since = 0.0
        self._lost = 0
        #: What the exporter said last.
        self.reason = ""

    def heard(self, message: str) -> None:
        """Keep what the exporter said last, for the one line."""
        self.reason = message

    def report(self, signal: str, *, delivered: bool, items: int) -> None:
        """Note the end of one export of a signal."""
        with self._lock:
            before = bool(self._failing)
            if delivered:
                self._failing.discard(signal)
            else:
                self._failing.add(signal)
                self._lost += items
            after = bool(self._failing)
            if before == after:
                return
            lost, lasted = self._lost, time.monotonic() - self._since
            self._lost, self._since = (self._lost, time.monotonic()) if after else (0, 0.0)
        # dictConfig switches off every logger that it does not name; this one has something to say.
        _logger.disabled = False
        if after:
            _logger.warning(
                "otel-kit: %s do not reach %s (%s); the application goes on, this is said once per outage",
                signal, self._destination, self.reason or "no answer",
            )  # fmt: skip
        else:
            _logger.warning(
                "otel-kit: telemetry reaches %s again after %.0f s; %d items could not be delivered",
                self._destination, lasted, lost,
            )  # fmt: skip

    def reset_after_fork(self) -> None:
        """A lock that was held at fork would stay held."""
        self._lock = threading.Lock()


class _LastWords(logging.Filter):
    """Takes the exporters' own complaints off the log, one per attempt and per signal, and keeps the last."""

    def __init__(self, outage: Outage) -> None:
        super().__init__()
        self._outage = outage

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        message = record.getMessage()
        # "Failed due to timeout, max retries or shutdown" follows what it was that failed each time.
        if "shutdown" not in message.lower() or not self._outage.reason:
            self._outage.heard(_cause(message))
        return False


_SYSTEM_ERROR = re.compile(r"\[Errno -?\d+\] [^'\")]+")
_TRANSIENT = re.compile(r"Transient error (.+?) encountered")


def _cause(message: str) -> str:
    """The part of an exporter's complaint that a reader needs: the system's own words, where there are any."""
    for pattern in (_SYSTEM_ERROR, _TRANSIENT):
        found = pattern.search(message)
        if found:
            return found[found.lastindex or 0][:300]
    return message.partition("\n")[0][:300]


def hush_upstream(outage: Outage) -> Callable[[], None]:
    """Route the exporters' complaints to ``outage``; the function returned takes that back."""
    listener = _LastWords(outage)
    for name in _UPSTREAM_LOGGERS:
        logging.getLogger(name).addFilter(listener)

    def undo() -> None:
        for name in _UPSTREAM_LOGGERS:
            logging.getLogger(name).removeFilter(listener)

    return undo


class _PerProcess(Generic[E]):
    """Builds the exporter anew in a forked child: the parent's sockets are not ours to write to (opentelemetry-python#4994)."""

    def __init__(self, factory: Callable[[], E]) -> None:
        self._factory: Callable[[], E] = factory
        self._exporter: E = factory()
        self._pid = os.getpid()

    def get(self) -> E:
        pid = os.getpid()
        if self._pid != pid:
            self._exporter, self._pid = self._factory(), pid
        return self._exporter


class GuardedSpanExporter(SpanExporter):
    """Redacts, sends, reports."""

    def __init__(self, factory: Callable[[], SpanExporter], redactor: Redactor, outage: Outage) -> None:
        self._exporter = _PerProcess(factory)
        self._redactor = redactor
        self._outage = outage

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with silenced():
            result = self._exporter.get().export([self._redactor.span(span) for span in spans])
        self._outage.report("traces", delivered=result is SpanExportResult.SUCCESS, items=len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.get().shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.get().force_flush(timeout_millis)


class GuardedLogExporter(LogRecordExporter):
    """Redacts, sends, reports."""

    def __init__(self, factory: Callable[[], LogRecordExporter], redactor: Redactor, outage: Outage) -> None:
        self._exporter = _PerProcess(factory)
        self._redactor = redactor
        self._outage = outage

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        with silenced():
            result = self._exporter.get().export([self._redactor.record(record) for record in batch])
        self._outage.report("logs", delivered=result is LogRecordExportResult.SUCCESS, items=len(batch))
        return result

    def shutdown(self) -> None:
        self._exporter.get().shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.get().force_flush(timeout_millis)


class GuardedMetricExporter(MetricExporter):
    """Redacts, sends, reports."""

    def __init__(self, factory: Callable[[], MetricExporter], redactor: Redactor, outage: Outage) -> None:
        self._exporter = _PerProcess(factory)
        self._redactor = redactor
        self._outage = outage
        built = self._exporter.get()
        # The reader asks the exporter for these; the SDK has no public way to pass them on.
        super().__init__(
            preferred_temporality=getattr(built, "_preferred_temporality", None),
            preferred_aggregation=getattr(built, "_preferred_aggregation", None),
        )

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        with silenced():
            clean = self._redactor.metrics(metrics_data)
            result = self._exporter.get().export(clean, timeout_millis=timeout_millis, **kwargs)
        # Cumulative points that did not arrive are made good by the next ones: nothing is lost yet.
        self._outage.report("metrics", delivered=result is MetricExportResult.SUCCESS, items=0)
        return result

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._exporter.get().shutdown(timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.get().force_flush(timeout_millis)


def is_reader(factory: Callable[[], Any]) -> bool:
    """Whether what an entry point offers for metrics is a pull reader (the Prometheus exporter) and not an exporter."""
    return isinstance(factory, type) and issubclass(factory, MetricReader)
