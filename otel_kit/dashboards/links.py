"""Links from a panel into Explore, where traces and logs are searched."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from urllib.parse import quote

from otel_kit.dashboards.datasources import LOKI, TEMPO, Datasource


@dataclass(frozen=True, slots=True)
class Link:
    """A data link: what it says and where it leads. ``${...}`` in ``url`` is filled in by Grafana."""

    title: str
    url: str


def _encode(text: str) -> str:
    """Percent-encode all but Grafana's own ``${...}``, which it would not recognise encoded."""
    parts = re.split(r"(\$\{[^}]*\})", text)
    return "".join(part if part.startswith("${") else quote(part, safe="") for part in parts)


def _explore(datasource: Datasource, query: dict[str, object]) -> str:
    pane = {
        "datasource": datasource.uid,
        "queries": [{"refId": "A", "datasource": {"type": datasource.type, "uid": datasource.uid}, **query}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    return "/explore?schemaVersion=1&orgId=1&panes=" + _encode(json.dumps({"a": pane}, separators=(",", ":")))


def traces(title: str, traceql: str) -> Link:
    """A link to a TraceQL search over the dashboard's time range."""
    return Link(title, _explore(TEMPO, {"queryType": "traceql", "query": traceql, "limit": 20, "tableType": "traces"}))


def logs(title: str, logql: str) -> Link:
    """A link to a LogQL query over the dashboard's time range."""
    return Link(title, _explore(LOKI, {"queryType": "range", "expr": logql}))


def service_graph(title: str) -> Link:
    """A link to the graph of services that Grafana draws from the collector's service graph metrics."""
    return Link(title, _explore(TEMPO, {"queryType": "serviceMap"}))
