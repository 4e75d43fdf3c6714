"""Exporters that others bring (console, Prometheus, a vendor's): found by name, rebuilt after a fork, redacted before.

Which there are is the specification's business (OTEL_TRACES_EXPORTER and its sisters) and the installed packages': they are
looked up among the entry points that those packages declare. OTLP goes its own way, see `otel_kit.telemetry.otlp`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricReader, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_kit.guard import guard
from otel_kit.telemetry.context import silenced
from otel_kit.telemetry.redaction import Redactor

_logger = logging.getLogger(__name__)

E = TypeVar("E", bound=SpanExporter | MetricExporter | LogRecordExporter)


def named(names: Sequence[str]) -> list[str]:
    """The exporters that a setting asks for, ``none`` left out."""
    return [name for name in names if name.lower() != "none"]


def factory(signal: str, name: str) -> Callable[[], Any] | None:
    """A function that builds an exporter of one signal (``traces``, ``metrics``, ``logs``).

    A name that nobody offers is named in one log line and left out: an operator's typing error must not stop a service.
    """
    offered = list(entry_points(group=f"opentelemetry_{signal}_exporter"))
    for entry in offered:
        if entry.name == name:
            with guard(f"loading the exporter {name!r} for {signal}"):
                loaded: Callable[[], Any] = entry.load()
                return loaded
    _logger.error(
        "otel-kit: OTEL_%s_EXPORTER names %r, which no installed package offers; accepted: %s. Left out",
        signal.upper(), name, ", ".join(sorted({"otlp", "none", *(entry.name for entry in offered)})),
    )  # fmt: skip
    return None


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
    """Redacts before it exports."""

    def __init__(self, factory: Callable[[], SpanExporter], redactor: Redactor) -> None:
        self._exporter = _PerProcess(factory)
        self._redactor = redactor

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with silenced():
            return self._exporter.get().export([self._redactor.span(span) for span in spans])

    def shutdown(self) -> None:
        self._exporter.get().shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.get().force_flush(timeout_millis)


class GuardedLogExporter(LogRecordExporter):
    """Redacts before it exports."""

    def __init__(self, factory: Callable[[], LogRecordExporter], redactor: Redactor) -> None:
        self._exporter = _PerProcess(factory)
        self._redactor = redactor

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        with silenced():
            return self._exporter.get().export([self._redactor.record(record) for record in batch])

    def shutdown(self) -> None:
        self._exporter.get().shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.get().force_flush(timeout_millis)


class GuardedMetricExporter(MetricExporter):
    """Redacts before it exports."""

    def __init__(self, factory: Callable[[], MetricExporter], redactor: Redactor) -> None:
        self._exporter = _PerProcess(factory)
        self._redactor = redactor
        built = self._exporter.get()
        # The reader asks the exporter for these; the SDK has no public way to pass them on.
        super().__init__(
            preferred_temporality=getattr(built, "_preferred_temporality", None),
            preferred_aggregation=getattr(built, "_preferred_aggregation", None),
        )

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        with silenced():
            clean = self._redactor.metrics(metrics_data)
            return self._exporter.get().export(clean, timeout_millis=timeout_millis, **kwargs)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._exporter.get().shutdown(timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.get().force_flush(timeout_millis)


def is_reader(factory: Callable[[], Any]) -> bool:
    """Whether what an entry point offers for metrics is a pull reader (the Prometheus exporter) and not an exporter."""
    return isinstance(factory, type) and issubclass(factory, MetricReader)
