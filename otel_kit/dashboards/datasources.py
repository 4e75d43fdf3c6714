"""Grafana's data sources and every link between traces, metrics and logs.

The result is a provisioning file, in which Grafana expands ``$NAME`` from its environment; ``$$`` is a plain ``$``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from otel_kit import catalogue
from otel_kit.dashboards.metrics import metric


@dataclass(frozen=True, slots=True)
class Datasource:
    """One backend as Grafana knows it: its plugin type and the uid by which dashboards and links refer to it."""

    name: str
    type: str
    uid: str
    url: str


#: The URLs come from Grafana's environment; docker-compose.yml sets them to its own services.
TEMPO: Final = Datasource("Tempo", "tempo", "otel-kit-tempo", "$OTEL_KIT_TEMPO_URL")
PROMETHEUS: Final = Datasource("Prometheus", "prometheus", "otel-kit-prometheus", "$OTEL_KIT_PROMETHEUS_URL")
LOKI: Final = Datasource("Loki", "loki", "otel-kit-loki", "$OTEL_KIT_LOKI_URL")
DATASOURCES: Final = (TEMPO, PROMETHEUS, LOKI)

#: How often a metric arrives, and so the smallest step that a panel may ask for: the kit's default for
#: OTEL_METRIC_EXPORT_INTERVAL.
EXPORT_INTERVAL: Final = "10s"

# A log line or a metric point of a span may lie a little outside it: clocks differ and metrics come in intervals.
_AROUND: Final = {"spanStartTimeShift": "-5m", "spanEndTimeShift": "5m"}


def _escaped(template: str) -> str:
    """Keep Grafana's own ``${...}`` from being expanded from the environment when the file is read."""
    return template.replace("$", "$$")


def _p95(instrument: str, *by: str) -> str:
    labels = ", ".join(("le", *by))
    return _escaped(
        f"histogram_quantile(0.95, sum by ({labels}) (rate({metric(instrument, 'bucket')}{{$__tags}}[5m])))"
    )


def _tag(attribute: str) -> dict[str, str]:
    """How a span's attribute is called as a label."""
    return {"key": attribute, "value": catalogue.prometheus_label(attribute)}


def _tempo() -> dict[str, Any]:
    runs = f"sum by (job_outcome) (rate({metric('job.executions')}{{$__tags}}[5m]))"
    return {
        "httpMethod": "GET",
        "tracesToLogsV2": {
            "datasourceUid": LOKI.uid,
            **_AROUND,
            "tags": [_tag(catalogue.SERVICE_NAME)],
            "filterByTraceID": False,
            "filterBySpanID": False,
            # The id is structured metadata of the line: the built-in filter, which searches its text, would find none.
            "customQuery": True,
            "query": _escaped('{${__tags}} | trace_id="${__trace.traceId}"'),
        },
        "tracesToMetrics": {
            "datasourceUid": PROMETHEUS.uid,
            **_AROUND,
            "tags": [_tag(catalogue.SERVICE_NAME), _tag(catalogue.JOB_NAME)],
            "queries": [
                {"name": "Requests: p95 by route", "query": _p95("http.server.request.duration", "http_route")},
                {"name": "Jobs: p95 duration", "query": _p95("job.duration", "job_name")},
                {"name": "Jobs: p95 wait", "query": _p95("job.wait.duration", "job_name")},
                {"name": "Jobs: runs by outcome", "query": _escaped(runs)},
            ],
        },
        "serviceMap": {"datasourceUid": PROMETHEUS.uid},
        "nodeGraph": {"enabled": True},
        "search": {"hide": False},
        "spanBar": {"type": "Tag", "tag": catalogue.JOB_NAME},
    }


def _prometheus() -> dict[str, Any]:
    return {
        "httpMethod": "POST",
        "prometheusType": "Prometheus",
        "timeInterval": EXPORT_INTERVAL,
        "exemplarTraceIdDestinations": [
            {"name": "trace_id", "datasourceUid": TEMPO.uid, "urlDisplayLabel": "Open the trace"},
        ],
    }


def _loki() -> dict[str, Any]:
    return {
        "maxLines": 1000,
        "derivedFields": [
            {
                "name": "trace_id",
                # A label, not a regular expression over the line: the id is structured metadata.
                "matcherType": "label",
                "matcherRegex": "trace_id",
                "url": _escaped("${__value.raw}"),
                "datasourceUid": TEMPO.uid,
                "urlDisplayLabel": "Open the trace",
            },
        ],
    }


def provisioning() -> dict[str, Any]:
    """The content of ``grafana/provisioning/datasources/otel-kit.yaml``."""
    json_data = {TEMPO.uid: _tempo(), PROMETHEUS.uid: _prometheus(), LOKI.uid: _loki()}
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": source.name,
                "type": source.type,
                "uid": source.uid,
                "access": "proxy",
                "url": source.url,
                "isDefault": source is PROMETHEUS,
                "editable": False,
                "jsonData": json_data[source.uid],
            }
            for source in DATASOURCES
        ],
    }
