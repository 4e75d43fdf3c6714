"""What `otel-kit demo` finds in telemetry, and what it promises."""

from __future__ import annotations

from typing import Any

from otel_kit.demo.checks import Snapshot, run_checks
from otel_kit.demo.story import clearest_request, expected_runs, forest, holding, jobs, quantile, totals, whole_requests
from otel_kit.testing import LogRecord, MetricPoint, Span


def span(service: str, span_id: str, parent_id: str = "", *, trace: str = "t1", at: float = 0, **more: Any) -> Span:
    values: dict[str, Any] = {
        "name": span_id,
        "kind": "CLIENT",
        "start": 1000 + at,
        "end": 1001 + at,
        "attributes": {},
        "status": "UNSET",
        "status_message": "",
        "events": [],
        "links": [],
        "scope": "",
        "resource": {},
    }
    return Span(service=service, trace_id=trace, span_id=span_id, parent_id=parent_id, **{**values, **more})


def run(span_id: str, parent_id: str = "", *, outcome: str = "success", job: str = "transcribe", **more: Any) -> Span:
    attributes = {"job.name": job, "job.id": "j1", "job.attempt": 1, "job.outcome": outcome, "job.wait.duration": 0.5}
    return span(
        "worker", span_id, parent_id, kind="CONSUMER", attributes={**attributes, **more.pop("also", {})}, **more
    )


def request(trace: str = "t1", *, lasts: float = 1.0) -> list[Span]:
    """A whole one, from the bot to the store."""
    return [
        span("bot", f"{trace}-b", trace=trace, end=1000 + lasts),
        span("gateway", f"{trace}-g", f"{trace}-b", trace=trace),
        run(f"{trace}-r", f"{trace}-g", trace=trace),
        span("worker", f"{trace}-s", f"{trace}-r", trace=trace, attributes={"db.system.name": "postgresql"}),
        span("worker", f"{trace}-c", f"{trace}-r", trace=trace, attributes={"db.system.name": "redis"}),
        span("store", f"{trace}-h", f"{trace}-r", trace=trace),
    ]


def executions(job: str, outcome: str, value: float, *, at: float = 1, instance: str = "i1") -> MetricPoint:
    return MetricPoint(
        service="worker",
        name="job.executions",
        kind="sum",
        unit="{execution}",
        attributes={"job.name": job, "job.outcome": outcome},
        value=value,
        count=0,
        buckets=(),
        bounds=(),
        start=0,
        time=at,
        exemplars=[],
        resource={"service.instance.id": instance},
    )


def record(service: str, event: str, trace: str = "t1", body: str = "said") -> LogRecord:
    return LogRecord(service, 1000, "INFO", body, event, {}, trace, "", "", {})


def test_forest_orders_by_start_and_makes_roots_of_spans_without_known_parent() -> None:
    spans = [
        span("a", "late", "root", at=2),
        span("a", "root"),
        span("a", "early", "root", at=1),
        span("a", "lost", "x", at=5),
    ]

    assert [[(depth, node.span.span_id) for depth, node in root.walk()] for root in forest(spans)] == [
        [(0, "root"), (1, "early"), (1, "late")],
        [(0, "lost")],
    ]


def test_forest_takes_a_span_that_arrived_twice_once() -> None:
    assert len(forest([span("a", "one"), span("a", "one")])) == 1


def test_clearest_request_is_the_quickest_of_those_that_go_all_the_way() -> None:
    slow, quick = request("t1", lasts=9), request("t2", lasts=2)
    broken_off = [each for each in request("t3", lasts=0.1) if each.service != "store"]

    assert clearest_request([*slow, *broken_off, *quick]) == quick


def test_request_in_two_pieces_is_not_whole() -> None:
    without_gateway = [each for each in request() if each.service != "gateway"]
    assert whole_requests([*without_gateway, span("gateway", "elsewhere", "unknown")]) == []


def test_totals_add_the_last_points_of_all_series() -> None:
    points = [
        executions("a", "success", 1, at=1),
        executions("a", "success", 3, at=2),
        executions("a", "success", 2, at=1.5),
        executions("a", "success", 5, at=1, instance="i2"),
        executions("a", "failure", 1),
    ]
    assert totals(points, "job.executions", "job.name", "job.outcome") == {("a", "success"): 8, ("a", "failure"): 1}


def test_jobs_count_by_metrics_and_time_by_spans() -> None:
    spans = [run("r1"), run("r2", end=1003, also={"job.wait.duration": 1.5})]
    points = [
        executions("transcribe", "success", 2),
        executions("transcribe", "lost", 0),
        executions("idle", "success", 0),
    ]
    (row,) = jobs(spans, points)

    assert (row.name, row.runs, row.outcomes) == ("transcribe", 2, {"success": 2, "lost": 0})
    assert (row.waits, row.durations) == ([0.5, 1.5], [1, 3])


def test_quantile_is_a_value_that_occurred() -> None:
    assert quantile([], 0.5) is None
    assert [quantile([3, 1, 2], share) for share in (0, 0.5, 0.95, 1)] == [1, 2, 3, 3]
    assert [quantile([1, 2], share) for share in (0.5, 0.95)] == [1, 2]


def test_secret_is_found_wherever_it_stands() -> None:
    leaks = [
        span("a", "1", name="GET hunter2"),
        span("a", "2", attributes={"url": {"query": ["hunter2"]}}),
        span("a", "3", events=[("exception", {"message": "hunter2"})]),
        record("a", "", body="hunter2"),
    ]
    assert holding("hunter2", leaks, [span("a", "4")]) == leaks


def test_retried_message_counts_as_a_retry_and_as_a_success() -> None:
    assert expected_runs({"success": 1, "slow": 2, "retry": 3, "failure": 4, "delayed": 5, "status": 6}) == {
        ("transcribe", "success"): 6,
        ("transcribe", "retry"): 3,
        ("transcribe", "failure"): 4,
        ("remind", "success"): 5,
    }


def complete() -> dict[str, Any]:
    """A run of one message that was retried once."""
    again = run("again", trace="t2", links=[("t1", "t1-r")], also={"job.attempt": 2})
    return {
        "spans": [*request(), again, run("night", trace="t4", job="nightly_report")],
        "logs": [
            record("gateway", "job.created", body="token=[redacted]"),
            record("worker", "job.started"),
            record("worker", "job.completed"),
        ],
        "points": [executions("transcribe", "success", 1), executions("transcribe", "retry", 1)],
        "sent": {"retry": 1},
        "secrets": {"store token": "hunter2"},
    }


def broken_promises(**changed: Any) -> dict[str, str]:
    checks = run_checks(Snapshot(**{**complete(), **changed}))
    return {check.promise: check.seen for check in checks if not check.kept}


def test_complete_story_keeps_every_promise() -> None:
    assert broken_promises() == {}


def test_run_that_is_counted_twice_is_told() -> None:
    points = [executions("transcribe", "success", 2), executions("transcribe", "retry", 1)]
    assert broken_promises(points=points) == {"every run is counted exactly once": "transcribe success 2 of 1"}


def test_retry_that_links_another_job_is_told() -> None:
    spans = [each for each in complete()["spans"] if each.span_id != "again"]
    other = run("again", trace="t2", links=[("t1", "t1-r")], also={"job.attempt": 2, "job.id": "j2"})
    assert broken_promises(spans=[*spans, other]) == {"every retry links the attempt before it": "0 of 1"}


def test_secret_that_got_out_is_told_but_not_shown() -> None:
    logs = [*complete()["logs"], record("worker", "", body="the password is hunter2")]
    broken = broken_promises(logs=logs)

    assert broken == {"secrets stay at home": "store token in LogRecord of worker"}


def test_nothing_received_breaks_every_promise() -> None:
    assert len(broken_promises(spans=[], logs=[], points=[])) == 6
