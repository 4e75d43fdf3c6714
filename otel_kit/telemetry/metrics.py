"""The meter provider, and how an instrument of the catalogue is made."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from otel_kit._version import __version__
from otel_kit.catalogue import Instrument
from otel_kit.settings import Settings
from otel_kit.telemetry.export import GuardedMetricExporter, Outage, factories, is_reader
from otel_kit.telemetry.redaction import Redactor

_logger = logging.getLogger(__name__)
Observe = Callable[[], Iterable[tuple[float, dict[str, str]]]]


def build(settings: Settings, resource: Resource, redactor: Redactor, outage: Outage) -> MeterProvider:
    """A provider that exports every `metric_interval`; views, temporality and exemplars follow OTEL_*."""
    readers: list[MetricReader] = []
    for factory in factories(settings, "metrics", settings.metrics_exporter):
        if is_reader(factory):
            readers.append(factory())
            continue
        exporter = GuardedMetricExporter(factory, redactor, outage)
        readers.append(PeriodicExportingMetricReader(exporter, export_interval_millis=settings.metric_interval * 1000))
    return MeterProvider(resource=resource, metric_readers=readers, shutdown_on_exit=False)


def reset_after_fork(provider: MeterProvider) -> None:
    """Empty a forked child's copy of its parent's totals, and replace locks that the parent may have held.

    The SDK restarts the reader's thread in the child and leaves everything else as it was, so that the child exports
    the parent's counts a second time, under an identity of its own (opentelemetry-python#4345, apache/airflow#73147).
    The storage behind a reader fills itself again with the first measurement, with a new start time.
    """
    try:
        consumer: Any = provider._measurement_consumer  # noqa: SLF001
        consumer._lock = threading.Lock()  # noqa: SLF001
        for reader, storage in consumer._reader_storages.items():  # noqa: SLF001
            storage._lock = threading.RLock()  # noqa: SLF001
            storage._instrument_view_instrument_matches = {}  # noqa: SLF001
            if isinstance(reader, PeriodicExportingMetricReader):
                reader._export_lock = threading.Lock()  # noqa: SLF001
    except AttributeError as missing:
        _logger.warning(
            "otel-kit: this SDK has changed inside (%s): a forked child may repeat its parent's counts", missing
        )


def _meter() -> metrics.Meter:
    return metrics.get_meter("otel_kit", __version__)


def counter(instrument: Instrument) -> Counter:
    """A counter of the catalogue."""
    return _meter().create_counter(instrument.name, instrument.unit, instrument.description)


def histogram(instrument: Instrument) -> Histogram:
    """A histogram of the catalogue, with its buckets."""
    return _meter().create_histogram(
        instrument.name,
        instrument.unit,
        instrument.description,
        explicit_bucket_boundaries_advisory=instrument.buckets or None,
    )


def _callback(observe: Observe) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _options: [Observation(value, attributes) for value, attributes in observe()]


def observed_gauge(instrument: Instrument, observe: Observe) -> None:
    """A gauge of the catalogue whose values are asked for at each export."""
    _meter().create_observable_gauge(instrument.name, [_callback(observe)], instrument.unit, instrument.description)


def observed_counter(instrument: Instrument, observe: Observe) -> None:
    """A counter of the catalogue whose totals are asked for at each export."""
    _meter().create_observable_counter(instrument.name, [_callback(observe)], instrument.unit, instrument.description)
