"""What the backends are asked after a run: one matrix of service and signal, and what must be true of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import httpx

from otel_kit import catalogue
from otel_kit.catalogue import prometheus_name
from otel_kit.demo.pipeline import BOT, GATEWAY, SCHEDULER, SERVICES, STORE, WORKER
from otel_kit.stack.query import StackQuery

_INSTRUMENTS: Final = {each.name: each for each in (*catalogue.INSTRUMENTS, *catalogue.UPSTREAM_INSTRUMENTS)}

#: One instrument of each service that only it can have counted.
INSTRUMENT_OF: Final[Mapping[str, str]] = {
    BOT.name: "http.client.request.duration",
    GATEWAY.name: "http.server.request.duration",
    WORKER.name: catalogue.EXECUTIONS.name,
    SCHEDULER.name: catalogue.SENT_MESSAGES.name,
    STORE.name: "http.server.request.duration",
}
SPAN_METRICS: Final = "traces_spanmetrics_calls_total"
SERVICE_GRAPH: Final = "traces_service_graph_request_total"


@dataclass(frozen=True, slots=True)
class Run:
    """Which telemetry is meant: that of this version, sent since then.

    Attributes:
        version: ``service.version`` of every service in this run, and of no other run.
        start: When its first message was sent (unix seconds).
    """

    version: str
    start: float


#: Whether it is there, asked for one service.
OfService = Callable[[StackQuery, Run, str], bool]
#: Whether it is there, asked for the whole system.
OfSystem = Callable[[StackQuery, Run], bool]


def _searched(query: StackQuery, run: Run, service: str) -> bool:
    return bool(query.tempo_search(_spans(run, service), start=run.start - 1))


def _by_id(query: StackQuery, run: Run, service: str) -> bool:
    # The clock's jobs have traces of their own; every other service has a part in a request that went all the way.
    ids = _trace_ids(query, run, *([SCHEDULER.name] if service == SCHEDULER.name else [BOT.name, STORE.name]))
    return any(service in _services(query.tempo_trace(trace_id)) for trace_id in ids)


def _measured(query: StackQuery, run: Run, service: str) -> bool:
    instrument = _INSTRUMENTS[INSTRUMENT_OF[service]]
    name = prometheus_name(instrument) + ("_count" if instrument.kind == "histogram" else "")
    labels = f'service_name="{service}",service_version="{run.version}"'
    return (query.prom_value(f"sum({name}{{{labels}}})") or 0) > 0


def _logged(query: StackQuery, run: Run, service: str) -> bool:
    return bool(query.loki_query(_lines(run, service), start=run.start - 60, limit=1))


def _in_span_metrics(query: StackQuery, run: Run, service: str) -> bool:
    return _grown(query, run, f'{SPAN_METRICS}{{service_name="{service}"}}')


#: Column title -> question.
SIGNALS: Final[Mapping[str, OfService]] = {
    "TraceQL": _searched,
    "trace id": _by_id,
    "PromQL": _measured,
    "LogQL": _logged,
    "span metrics": _in_span_metrics,
}
MATRIX: Final = tuple((service.name, signal) for service in SERVICES for signal in SIGNALS)


def _exemplar_leads_to_trace(query: StackQuery, run: Run) -> bool:
    return any(query.tempo_trace(trace_id) for trace_id in _exemplar_ids(query, run)[:5])


def _same_id_everywhere(query: StackQuery, run: Run) -> bool:
    logged = set(_logged_ids(query, run, GATEWAY.name))
    return any(query.tempo_trace(trace_id) for trace_id in _exemplar_ids(query, run) if trace_id in logged)


def _whole_road(query: StackQuery, run: Run) -> bool:
    road = {BOT.name, GATEWAY.name, WORKER.name, STORE.name}
    ids = _trace_ids(query, run, BOT.name, STORE.name)
    return any(_services(query.tempo_trace(trace_id)) >= road for trace_id in ids)


def _edge(query: StackQuery, run: Run) -> bool:
    return _grown(query, run, f'{SERVICE_GRAPH}{{client="{GATEWAY.name}",server="{WORKER.name}"}}')


WHOLE: Final[Mapping[str, OfSystem]] = {
    "one trace from the bot to the store": _whole_road,
    "the same trace id in Tempo, Prometheus and Loki": _same_id_everywhere,
    "an exemplar that leads to its trace": _exemplar_leads_to_trace,
    "service graph: gateway -> worker": _edge,
}


def _spans(run: Run, service: str) -> str:
    return f'{{ resource.service.name = "{service}" && resource.service.version = "{run.version}" }}'


def _lines(run: Run, service: str) -> str:
    return f'{{service_name="{service}"}} | service_version="{run.version}"'


def _logged_ids(query: StackQuery, run: Run, service: str) -> list[str]:
    lines = query.loki_query(f'{_lines(run, service)} | trace_id != ""', start=run.start - 60)
    return _distinct(line["labels"].get("trace_id", "") for line in lines)


def _trace_ids(query: StackQuery, run: Run, *services: str, limit: int = 5) -> list[str]:
    """Ids of some traces that all of these services have a part in.

    For one service from Loki, which knows them at once; else by a search in Tempo. That stops at the first few that fit, so
    it is told all: a service alone would be found in as many traces of its health checks.
    """
    if len(services) == 1:
        with suppress(httpx.HTTPError):
            if ids := _logged_ids(query, run, services[0]):
                return ids[:limit]
    search = " && ".join(_spans(run, service) for service in services)
    found = query.tempo_search(search, start=run.start - 1, limit=limit)
    return [trace["traceID"] for trace in found]


def _exemplar_ids(query: StackQuery, run: Run) -> list[str]:
    name = prometheus_name(_INSTRUMENTS[INSTRUMENT_OF[GATEWAY.name]])
    labels = f'service_name="{GATEWAY.name}",service_version="{run.version}"'
    series = query.prom_exemplars(f"{name}_bucket{{{labels}}}", start=run.start - 60)
    return _distinct(point["labels"].get("trace_id", "") for each in series for point in each["exemplars"])


def _grown(query: StackQuery, run: Run, selector: str) -> bool:
    """Whether one of these counters has grown in this run: they do not carry its version, and runs before it do not count."""
    before = {_labels(series): _value(series) for series in query.prom_query(selector, at=run.start)}
    return any(_value(series) > before.get(_labels(series), 0) for series in query.prom_query(selector))


def _labels(series: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset(series["metric"].items())


def _value(series: Mapping[str, Any]) -> float:
    return float(series["value"][1])


def _distinct(ids: Iterable[str]) -> list[str]:
    return [trace_id for trace_id in dict.fromkeys(ids) if trace_id]


def _services(spans: list[dict[str, Any]]) -> set[str]:
    return {
        attribute["value"].get("stringValue", "")
        for span in spans
        for attribute in span["resource"].get("attributes", [])
        if attribute["key"] == catalogue.SERVICE_NAME
    }
