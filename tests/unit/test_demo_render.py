"""How `otel-kit demo` draws: what is on the screen at 80 and at 120 columns."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from otel_kit.demo import render
from otel_kit.demo.checks import Check
from otel_kit.demo.processes import PartFailedError
from otel_kit.demo.story import JobRow
from otel_kit.testing import LogRecord, Span


def drawn(what: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(what)
    output = console.file
    assert isinstance(output, io.StringIO)
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    assert all(len(line) <= width for line in lines)
    return "\n".join(lines)


def span(service: str, name: str, span_id: str, parent_id: str, start: float, end: float, **more: Any) -> Span:
    values = {"kind": "CLIENT", "attributes": {}, "status": "UNSET"} | more
    return Span(
        service=service,
        name=name,
        trace_id="t",
        span_id=span_id,
        parent_id=parent_id,
        start=1000 + start,
        end=1000 + end,
        status_message="",
        events=[],
        links=[],
        scope="",
        resource={},
        **values,
    )


REQUEST = [
    span("bot", "POST", "1", "", 0, 0.01, attributes={"http.response.status_code": 202}),
    span(
        "gateway", "POST /notes", "2", "1", 0.002, 0.009, kind="SERVER", attributes={"http.response.status_code": 202}
    ),
    span("gateway", "send notes", "3", "2", 0.005, 0.007, kind="PRODUCER", attributes={"job.name": "transcribe"}),
    span(
        "worker",
        "process notes",
        "4",
        "3",
        0.02,
        0.1,
        kind="CONSUMER",
        attributes={"job.name": "transcribe", "job.wait.duration": 0.013, "job.outcome": "success"},
    ),
    span("worker", "SELECT /tmp/x/notes.db", "5", "4", 0.03, 0.0302, attributes={"db.system.name": "sqlite"}),
    span("worker", "GET", "6", "4", 0.04, 0.09, status="ERROR"),
]


def test_request_at_80_columns() -> None:
    assert drawn(render.request_tree(REQUEST, width=78), 78).splitlines() == [
        "bot     POST 202                         10 ms ━━",
        "gateway └ POST /notes 202               7.0 ms ━━",
        "gateway   └ send notes transcribe       2.0 ms  ━",
        "worker      └ process notes transcribe   80 ms     ━━━━━━━━━━━━━━━━",
        "worker        ├ SELECT notes.db sqlite  200 us       ━",
        "worker        └ GET                      50 ms         ━━━━━━━━━━",
    ]


def test_request_at_120_columns_has_details() -> None:
    assert drawn(render.request_tree(REQUEST, width=118), 118).splitlines() == [
        "bot     POST                    202, client                          10 ms ━━━",
        "gateway └ POST /notes           202, server                         7.0 ms  ━━",
        "gateway   └ send notes          transcribe                          2.0 ms   ━",
        "worker      └ process notes     transcribe, waited 13 ms, success    80 ms       ━━━━━━━━━━━━━━━━━━━━━━━━━━",
        "worker        ├ SELECT notes.db sqlite                              200 us           ━",
        "worker        └ GET                                                  50 ms              ━━━━━━━━━━━━━━━━",
    ]


def test_long_names_are_cut_and_never_the_times() -> None:
    spans = [span("gateway", "GET /" + "a" * 200, "1", "", 0, 0.5)]
    for width in (78, 118):
        line = drawn(render.request_tree(spans, width=width), width)
        assert "…" in line
        assert "500 ms ━━━━━" in line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0 us"),
        (0.0004, "400 us"),
        (0.001, "1.0 ms"),
        (0.00999, "10 ms"),
        (0.25, "250 ms"),
        (0.9999, "1.00 s"),
        (1.5, "1.50 s"),
        (250, "250 s"),
    ],
)
def test_durations_are_short(value: float | None, text: str) -> None:
    assert render.seconds(value) == text


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [(0, 1, "━━━━━━━━━━"), (0, 0, "━         "), (1, 1, "         ━"), (0.5, 0.8, "     ━━━  ")],
)
def test_bar_lies_where_the_time_was_and_is_never_invisible(start: float, end: float, text: str) -> None:
    assert render.bar(start, end, width=10) == text


def test_jobs_show_a_column_for_every_outcome_that_occurred() -> None:
    rows = [
        JobRow("transcribe", {"success": 12, "failure": 2, "lost": 1, "expired": 0}, [0.01, 2.5], [0.08, 1.2]),
        JobRow("remind", {"success": 3}),
    ]
    assert drawn(render.job_table(rows), 80).splitlines() == [
        "job         runs  ok  retry  failed  lost  wait p50     p95  time p50     p95",
        "transcribe    15  12      0       2     1     10 ms  2.50 s     80 ms  1.20 s",
        "remind         3   3      0       0     0         -       -         -       -",
    ]


def test_log_texts_are_never_taken_for_markup() -> None:
    record = LogRecord("worker", 1000, "INFO", "[bold]token=[redacted][/bold]", "", {}, "t", "s", "", {})
    assert drawn(render.log_lines([record], width=78), 78) == "+0 us worker [bold]token=[redacted][/bold]"


def test_logs_show_event_severity_and_job_and_say_how_many_are_left_out() -> None:
    job = {"job.name": "transcribe", "job.id": "35f3bc95-e4cf-4163-9261-b34aeeb749cf", "job.attempt": 2}
    records = [
        LogRecord("worker", 1000 + n, "WARN", f"try\nagain {n}", "job.retried", job, "t", "s", "", {}) for n in range(4)
    ]
    assert drawn(render.log_lines(records, width=118, limit=2), 118).splitlines() == [
        "  +0 us worker WARN try again 0  job.retried job.name=transcribe job.id=35f3bc95 job.attempt=2",
        "+1.00 s worker WARN try again 1  job.retried job.name=transcribe job.id=35f3bc95 job.attempt=2",
        "               and 2 more",
    ]


def test_checks_say_what_was_seen() -> None:
    checks = [Check("one trace", True, "17 whole requests"), Check("every run is counted", False, "1 of 2")]
    assert drawn(render.check_list(checks), 80).splitlines() == [
        "✓ one trace            17 whole requests",
        "✗ every run is counted 1 of 2",
    ]


def test_failure_names_the_part_and_shows_its_log() -> None:
    error = PartFailedError("redis", "ended by itself with exit code 1", ["[port] in use"])
    assert drawn(render.failure(error), 80).splitlines() == [
        "✗ redis ended by itself with exit code 1",
        "the last lines of its log (redis):",
        "  [port] in use",
    ]
