"""Signals of the telemetry pipeline itself: is what the other panels show complete?"""

from __future__ import annotations

from typing import Final

from otel_kit.dashboards.signals import Query, Signal, Thresholds

#: A queue this full (share of its capacity) is one outage away from dropping.
QUEUE_WARNING: Final = 0.5
QUEUE_CRITICAL: Final = 0.7

# The zero exists only while the collector is scraped: one that is down must not look like one that drops nothing.
_ZERO: Final = '0 * sum(up{job=~"otelcol.*"} == 1)'


def _dropped(telemetry: str) -> str:
    parts = [
        f"(sum(increase(otelcol_exporter_{failure}_failed_{telemetry}_total[$__range])) or {_ZERO})"
        for failure in ("enqueue", "send")
    ]
    return " + ".join(parts)


COLLECTOR_QUEUES = Signal(
    title="Collector queues",
    means="How full the collector's queues to the backends are. They fill while a backend is away.",
    good="Near 0 %.",
    action="See whether the backend answers (`otel-kit stack status`). What is queued is delivered when it is back.",
    queries=(
        Query(
            expr="max by (exporter, data_type) (otelcol_exporter_queue_size / otelcol_exporter_queue_capacity)",
            legend="{{exporter}} {{data_type}}",
        ),
    ),
    unit="percentunit",
    thresholds=Thresholds(warning=QUEUE_WARNING, critical=QUEUE_CRITICAL),
    empty="the collector is not scraped",
)

TELEMETRY_DROPPED = Signal(
    title="Telemetry dropped",
    means="Spans, metric points and log records that the collector could neither deliver nor keep, in the chosen time.",
    good="0.",
    action="Every other panel shows too little. The collector's log names the exporter and the backend's answer.",
    queries=(
        Query(expr=_dropped("spans"), legend="spans"),
        Query(expr=_dropped("metric_points"), legend="metric points"),
        Query(expr=_dropped("log_records"), legend="log records"),
    ),
    thresholds=Thresholds(warning=1, critical=100),
    empty="the collector is not scraped",
)
