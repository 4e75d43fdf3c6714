"""What is worth telling in the telemetry that arrived: one request as a tree, the jobs as a table, the logs of a trace."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from otel_kit import catalogue
from otel_kit.testing import LogRecord, MetricPoint, Span

#: The job that a request leads to, and the services on its road.
MAIN_JOB: Final = "transcribe"
ROAD: Final = ("bot", "gateway", "worker", "store")


@dataclass(frozen=True, slots=True)
class Node:
    """A span and what it caused, in order of start."""

    span: Span
    children: tuple[Node, ...]

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """This node and everything below it with its depth, parents first."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)


def forest(spans: Iterable[Span]) -> list[Node]:
    """The spans as trees; a span whose parent is not among them is a root."""
    by_id = {span.span_id: span for span in spans}
    below: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(by_id.values(), key=lambda each: (each.start, -each.end)):
        below[span.parent_id if span.parent_id in by_id else ""].append(span)

    def node(span: Span) -> Node:
        return Node(span, tuple(node(child) for child in below[span.span_id]))

    return [node(root) for root in below[""]]


def traces(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """The spans by trace id."""
    found: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        found[span.trace_id].append(span)
    return found


def systems(spans: Iterable[Span]) -> set[str]:
    """Which databases the spans talk to (``db.system.name``, or ``db.system`` of older conventions)."""
    found = {span.attributes.get("db.system.name", span.attributes.get("db.system", "")) for span in spans}
    return {str(system) for system in found if system}


def whole_requests(spans: Iterable[Span]) -> list[list[Span]]:
    """The traces that go all the way: from the bot through the queue to SQL, Redis and the store; quickest first."""
    whole = []
    for trace in traces(spans).values():
        services = {span.service for span in trace}
        by_worker = [span for span in trace if span.service == "worker"]
        done = any(
            span.kind == "CONSUMER" and span.attributes.get(catalogue.JOB_OUTCOME) == "success" for span in by_worker
        )
        roots = [span for span in trace if not span.parent_id]
        if (
            services >= set(ROAD)
            and done
            and len(forest(trace)) == len(roots) == 1
            and roots[0].service == "bot"
            and "redis" in systems(by_worker)
            and systems(by_worker) - {"redis"}
        ):
            whole.append(trace)
    return sorted(whole, key=lambda trace: max(s.end for s in trace) - min(s.start for s in trace))


def clearest_request(spans: Iterable[Span]) -> list[Span]:
    """The quickest whole request, in which waiting hides the least; nothing when there is none."""
    whole = whole_requests(spans)
    return whole[0] if whole else []


def records_of(trace_id: str, records: Iterable[LogRecord]) -> list[LogRecord]:
    """The log records of a trace in order of time."""
    return sorted((record for record in records if record.trace_id == trace_id), key=lambda record: record.time)


def totals(points: Iterable[MetricPoint], name: str, *attributes: str) -> dict[tuple[str, ...], float]:
    """A cumulative sum by the given attributes: the last value of every series, added up."""
    last: dict[tuple[Any, ...], MetricPoint] = {}
    for point in points:
        if point.name == name:
            instance = point.resource.get(catalogue.SERVICE_INSTANCE_ID)
            series = (point.service, instance, tuple(sorted(point.attributes.items(), key=str)))
            if series not in last or point.time >= last[series].time:
                last[series] = point
    result: dict[tuple[str, ...], float] = defaultdict(float)
    for point in last.values():
        result[tuple(str(point.attributes.get(attribute, "")) for attribute in attributes)] += point.value
    return dict(result)


@dataclass(slots=True)
class JobRow:
    """One job: how its runs ended (from the metrics), how long they waited and took (from their spans, seconds)."""

    name: str
    outcomes: dict[str, int] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)

    @property
    def runs(self) -> int:
        return sum(self.outcomes.values())


def jobs(spans: Iterable[Span], points: Iterable[MetricPoint]) -> list[JobRow]:
    """The jobs that ran, busiest first."""
    rows: dict[str, JobRow] = {}
    counted = totals(points, catalogue.EXECUTIONS.name, catalogue.JOB_NAME, catalogue.JOB_OUTCOME)
    for (name, outcome), count in counted.items():
        rows.setdefault(name, JobRow(name)).outcomes[outcome] = round(count)
    for span in spans:
        if span.kind == "CONSUMER" and catalogue.JOB_NAME in span.attributes:
            row = rows.setdefault(span.attributes[catalogue.JOB_NAME], JobRow(span.attributes[catalogue.JOB_NAME]))
            row.durations.append(span.end - span.start)
            if catalogue.JOB_WAIT in span.attributes:
                row.waits.append(float(span.attributes[catalogue.JOB_WAIT]))
    return sorted((row for row in rows.values() if row.runs or row.durations), key=lambda row: (-row.runs, row.name))


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value that this share of the values does not exceed (nearest rank); ``None`` of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def holding(secret: str, *signals: Iterable[object]) -> list[object]:
    """Everything in which a text stands: in a name, an attribute, a body, an event, a resource."""
    return [item for signal in signals for item in signal if secret in repr(item)]


def expected_runs(sent: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """How the jobs must have ended, by (job, outcome), when the load driver has sent this."""
    return {
        (MAIN_JOB, "success"): sent.get("success", 0) + sent.get("slow", 0) + sent.get("retry", 0),
        (MAIN_JOB, "retry"): sent.get("retry", 0),
        (MAIN_JOB, "failure"): sent.get("failure", 0),
        ("remind", "success"): sent.get("delayed", 0),
    }
