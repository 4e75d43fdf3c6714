"""Which of the numbered spans, points and lines of :class:`tests.stack.otlp.Traffic` a backend has."""

from __future__ import annotations

from otel_kit.stack.query import StackQuery, poll
from tests.stack.otlp import Traffic


def found_spans(query: StackQuery, traffic: Traffic) -> list[int]:
    search = f'{{ resource.service.name = "{traffic.service}" && span.n > 0 }}'
    return sorted(
        int(attribute["value"]["intValue"])
        for trace in query.tempo_search(search, start=traffic.started - 60, limit=20000)
        for span in trace["spanSet"]["spans"]
        for attribute in span["attributes"]
        if attribute["key"] == "n"
    )


def found_points(query: StackQuery, traffic: Traffic) -> list[int]:
    # Late samples too: the whole run, not only what an instant query looks back at.
    series = query.prom_query(f'last_over_time(traffic_point{{service_name="{traffic.service}"}}[15m])')
    return sorted(int(entry["metric"]["n"]) for entry in series)


def found_lines(query: StackQuery, traffic: Traffic) -> list[int]:
    entries = query.loki_query(f'{{service_name="{traffic.service}"}}', start=traffic.started - 60, limit=10000)
    return sorted(int(entry["line"].removeprefix("line ")) for entry in entries)


FOUND = {"spans": found_spans, "points": found_points, "lines": found_lines}


def missing(query: StackQuery, traffic: Traffic, signal: str, timeout: float) -> set[int]:
    """Those that were accepted and are not found within ``timeout`` seconds."""
    accepted = traffic.accepted[signal]
    poll(lambda: accepted <= set(FOUND[signal](query, traffic)), timeout, interval=1.0)
    return accepted - set(FOUND[signal](query, traffic))
