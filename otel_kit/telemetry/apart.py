"""Points of something that is no process: a queue's depth belongs to the queue, whoever happens to report it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

from opentelemetry.sdk.metrics.export import (
    Gauge,
    Metric,
    MetricExporter,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_kit import catalogue
from otel_kit._version import __version__
from otel_kit.catalogue import Instrument
from otel_kit.guard import guard

#: What of a process's resource its queues share.
_SHARED: Final = (catalogue.SERVICE_NAMESPACE, catalogue.ENVIRONMENT, catalogue.DISTRO_NAME, catalogue.DISTRO_VERSION)

Values = Sequence[tuple[Instrument, float, Mapping[str, str]]]


class ApartData(MetricsData):
    """Points that are not this process's own."""


def is_apart(data: MetricsData) -> bool:
    """Whether these points belong to something else than this process."""
    return isinstance(data, ApartData)


class Apart:
    """Exports gauges under an identity that is not the process's.

    A service's name is part of a series' identity: where two services take turns in reporting one queue, it would have two
    series, and each turn would look like a queue that vanished.
    """

    def __init__(self) -> None:
        self._exporters: list[MetricExporter] = []
        self._shared: dict[str, str] = {}

    def use(self, exporters: Sequence[MetricExporter], resource: Resource) -> None:
        """Export through these from now on; namespace and environment are the process's."""
        self._exporters = list(exporters)
        self._shared = {name: str(resource.attributes[name]) for name in _SHARED if name in resource.attributes}

    def export(self, service_name: str, instance: str, values: Values) -> None:
        """Export gauges as they are now; it waits for no network on our own road.

        Args:
            service_name: `service.name` of what they belong to.
            instance: Its `service.instance.id`.
            values: Instruments of the catalogue, their values and attributes.
        """
        now = time.time_ns()
        metrics: dict[str, tuple[Instrument, list[NumberDataPoint]]] = {}
        for instrument, value, attributes in values:
            point = NumberDataPoint(dict(attributes), now, now, value)
            metrics.setdefault(instrument.name, (instrument, []))[1].append(point)
        identity = {catalogue.SERVICE_NAME: service_name, catalogue.SERVICE_INSTANCE_ID: instance}
        made = [Metric(i.name, i.description, i.unit, Gauge(points)) for i, points in metrics.values()]
        scope = ScopeMetrics(InstrumentationScope("otel_kit", __version__), made, "")
        data = ApartData([ResourceMetrics(Resource({**self._shared, **identity}), [scope], "")])
        for exporter in self._exporters:
            with guard("exporting a queue's metrics"):
                exporter.export(data)


apart = Apart()
