"""The meter provider."""

from __future__ import annotations

import logging
import threading
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from otel_kit.settings import Settings
from otel_kit.telemetry.apart import apart
from otel_kit.telemetry.export import GuardedMetricExporter, factory, is_reader, named
from otel_kit.telemetry.otlp import Otlp, PointExporter, is_otlp
from otel_kit.telemetry.redaction import Redactor

_logger = logging.getLogger(__name__)


def build(settings: Settings, resource: Resource, redactor: Redactor, otlp: Otlp) -> MeterProvider:
    """A provider that exports every `metric_interval`; views, temporality and exemplars follow OTEL_*."""
    readers: list[MetricReader] = []
    exporters: list[MetricExporter] = []
    for name in named(settings.metrics_exporter):
        if is_otlp(name):
            exporter: MetricExporter | None = otlp.points(name)
        else:
            make = factory("metrics", name)
            if make is not None and is_reader(make):
                readers.append(make())
                continue
            exporter = GuardedMetricExporter(make, redactor) if make is not None else None
        if exporter is not None:
            exporters.append(exporter)
            readers.append(
                PeriodicExportingMetricReader(exporter, export_interval_millis=settings.metric_interval * 1000)
            )
    apart.use(exporters, resource)
    return MeterProvider(resource=resource, metric_readers=readers, shutdown_on_exit=False)


def renew(provider: MeterProvider) -> None:
    """Start the readers' threads anew, of the kind that `threading` offers now."""
    try:
        for reader in provider._measurement_consumer._reader_storages:  # noqa: SLF001
            if isinstance(reader, PeriodicExportingMetricReader):
                ending, reader._shutdown_event = reader._shutdown_event, threading.Event()  # noqa: SLF001
                reader._export_lock = threading.Lock()  # noqa: SLF001
                if isinstance(reader._exporter, PointExporter):  # noqa: SLF001
                    reader._exporter.leave_out_other_threads()  # noqa: SLF001
                ending.set()
                reader._at_fork_reinit()  # type: ignore[no-untyped-call]  # noqa: SLF001
    except AttributeError as missing:
        _logger.warning("otel-kit: this SDK has changed inside (%s): metrics may end with greenlets", missing)


def reset_after_fork(provider: MeterProvider) -> None:
    """Empty a forked child's copy of its parent's totals, and replace locks that the parent may have held.

    The SDK restarts the reader's thread in the child and leaves everything else as it was, so that the child exports
    the parent's counts a second time, under an identity of its own (opentelemetry-python#4345, apache/airflow#73147).
    The storage behind a reader fills itself again with the first measurement, with a new start time.
    """
    try:
        consumer: Any = provider._measurement_consumer  # noqa: SLF001
        consumer._lock = threading.RLock()  # noqa: SLF001
        for reader, storage in consumer._reader_storages.items():  # noqa: SLF001
            storage._lock = threading.RLock()  # noqa: SLF001
            storage._instrument_view_instrument_matches = {}  # noqa: SLF001
            if isinstance(reader, PeriodicExportingMetricReader):
                reader._export_lock = threading.Lock()  # noqa: SLF001
    except AttributeError as missing:
        _logger.warning(
            "otel-kit: this SDK has changed inside (%s): a forked child may repeat its parent's counts", missing
        )
