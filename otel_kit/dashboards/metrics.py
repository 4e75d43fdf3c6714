"""The metric names that queries are written with: those of the catalogue, and those that other programs emit."""

from __future__ import annotations

from typing import Final

from otel_kit.catalogue import INSTRUMENTS, UPSTREAM_INSTRUMENTS, Instrument, prometheus_name

_BY_NAME: Final[dict[str, Instrument]] = {each.name: each for each in (*INSTRUMENTS, *UPSTREAM_INSTRUMENTS)}

#: Prometheus's own, and the collector's own telemetry at v0.145 as its Prometheus reader writes it.
SCRAPED: Final = frozenset(
    {
        "up",
        "otelcol_exporter_queue_size",
        "otelcol_exporter_queue_capacity",
        *(
            f"otelcol_exporter_{failure}_failed_{signal}_total"
            for failure in ("enqueue", "send")
            for signal in ("spans", "metric_points", "log_records")
        ),
    }
)


def metric(name: str, series: str = "") -> str:
    """The Prometheus name of an instrument of the catalogue.

    Parameters:
        name: The instrument's OpenTelemetry name, as ``job.duration``.
        series: For a histogram which of its series: ``bucket``, ``sum`` or ``count``.

    Raises:
        KeyError: No such instrument is in the catalogue, so nothing would ever answer the query.
    """
    if name not in _BY_NAME:
        raise KeyError(f"{name!r} is not an instrument of otel_kit.catalogue")
    base = prometheus_name(_BY_NAME[name])
    return f"{base}_{series}" if series else base
