"""What must be true of the telemetry for the demo to have shown what it promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from otel_kit import catalogue
from otel_kit.demo import story
from otel_kit.telemetry.redaction import REDACTED
from otel_kit.testing import LogRecord, MetricPoint, Span


class Received(Protocol):
    """What has arrived, as `otel_kit.testing.OtlpSink` shows it."""

    @property
    def spans(self) -> list[Span]: ...
    @property
    def logs(self) -> list[LogRecord]: ...
    @property
    def points(self) -> list[MetricPoint]: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What has arrived at one moment, what had been sent, and what must not arrive."""

    spans: list[Span]
    logs: list[LogRecord]
    points: list[MetricPoint]
    sent: Mapping[str, int]
    secrets: Mapping[str, str]

    @classmethod
    def of(cls, received: Received, sent: Mapping[str, int], secrets: Mapping[str, str]) -> Snapshot:
        return cls(received.spans, received.logs, received.points, sent, secrets)


@dataclass(frozen=True, slots=True)
class Check:
    """A promise, whether it is kept, and what was seen."""

    promise: str
    kept: bool
    seen: str


def _one_trace(snapshot: Snapshot) -> Check:
    whole = story.whole_requests(snapshot.spans)
    return Check(
        "one trace: bot, gateway, queue, worker, SQL, Redis, HTTP", bool(whole), f"{len(whole)} whole requests"
    )


def _every_run_counted(snapshot: Snapshot) -> Check:
    counted = story.totals(snapshot.points, catalogue.EXECUTIONS.name, catalogue.JOB_NAME, catalogue.JOB_OUTCOME)
    wrong = [
        f"{job} {outcome} {counted.get((job, outcome), 0):g} of {expected}"
        for (job, outcome), expected in story.expected_runs(snapshot.sent).items()
        if counted.get((job, outcome), 0) != expected
    ]
    total = sum(story.expected_runs(snapshot.sent).values())
    return Check("every run is counted exactly once", not wrong, ", ".join(wrong) or f"{total} runs")


def _retries_linked(snapshot: Snapshot) -> Check:
    runs = {span.span_id: span for span in snapshot.spans if span.kind == "CONSUMER"}
    again = [span for span in runs.values() if span.attributes.get(catalogue.JOB_ATTEMPT, 1) > 1]
    linked = [
        span
        for span in again
        if any(linked_to in runs and _same_job(runs[linked_to], span) for _trace_id, linked_to in span.links)
    ]
    expected = snapshot.sent.get("retry", 0)
    return Check(
        "every retry links the attempt before it", len(linked) == len(again) == expected, f"{len(linked)} of {expected}"
    )


def _same_job(one: Span, other: Span) -> bool:
    return bool(one.attributes.get(catalogue.JOB_ID) == other.attributes.get(catalogue.JOB_ID))


def _schedule_runs(snapshot: Snapshot) -> Check:
    runs = [
        span
        for span in snapshot.spans
        if span.kind == "CONSUMER" and span.attributes.get(catalogue.JOB_NAME) == "nightly_report"
    ]
    return Check("scheduled jobs run", bool(runs), f"nightly_report {len(runs)} times")


def _logs_correlated(snapshot: Snapshot) -> Check:
    request = story.clearest_request(snapshot.spans)
    records = story.records_of(request[0].trace_id, snapshot.logs) if request else []
    services = sorted({record.service for record in records})
    events = {record.event_name for record in records}
    kept = set(services) >= {"gateway", "worker"} and {catalogue.JOB_STARTED, catalogue.JOB_COMPLETED} <= events
    return Check(
        "logs carry the trace id and the job", kept, f"{len(records)} records of {', '.join(services) or 'nobody'}"
    )


def _secrets_stay(snapshot: Snapshot) -> Check:
    leaks = [
        f"{what} in {type(item).__name__} of {getattr(item, 'service', '?')}"
        for what, secret in snapshot.secrets.items()
        for item in story.holding(secret, snapshot.spans, snapshot.logs, snapshot.points)[:3]
    ]
    hidden = len(story.holding(REDACTED, snapshot.spans, snapshot.logs))
    return Check("secrets stay at home", not leaks and hidden > 0, ", ".join(leaks) or f"{REDACTED} in {hidden} places")


CHECKS: Final[tuple[Callable[[Snapshot], Check], ...]] = (
    _one_trace,
    _every_run_counted,
    _retries_linked,
    _schedule_runs,
    _logs_correlated,
    _secrets_stay,
)


def run_checks(snapshot: Snapshot) -> list[Check]:
    """Every promise held against what has arrived."""
    return [check(snapshot) for check in CHECKS]
