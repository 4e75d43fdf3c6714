"""examples/pipeline with real processes, a real Redis and a real OTLP hop: what one line per service gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from otel_kit.demo.embedded import QUICK_EXPORT
from otel_kit.demo.pipeline import Pipeline, running_pipeline
from otel_kit.demo.story import forest, holding, records_of, totals, traces
from otel_kit.testing import OtlpSink, Span


class System(NamedTuple):
    pipeline: Pipeline
    sink: OtlpSink

    def send(self, recording: str, *, runs: int = 1) -> list[Span]:
        """Have a recording transcribed; the spans of its runs, first attempt first."""
        self.pipeline.say(f"chat-1 /transcribe {recording}")
        self.sink.wait_for(lambda s: len(runs_for(recording, s)) >= runs, timeout=30)
        return runs_for(recording, self.sink)

    def trace(self, trace_id: str, *, spans: int) -> list[tuple[int, Span]]:
        """All of a trace as (depth, span), parents first, once it has so many spans. It must be one tree."""
        self.sink.wait_for(lambda s: len(traces(s.spans)[trace_id]) >= spans, timeout=15)
        (root,) = forest(traces(self.sink.spans)[trace_id])
        return [(depth, node.span) for depth, node in root.walk()]


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with (
        OtlpSink() as sink,
        running_pipeline(sink.endpoint, lambda _part, _what: None, telemetry=QUICK_EXPORT) as pipeline,
    ):
        yield System(pipeline, sink)
        pipeline.processes.check()


def runs_of(job: str, spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.kind == "CONSUMER" and span.attributes.get("job.name") == job]


def runs_for(recording: str, sink: OtlpSink) -> list[Span]:
    """The runs that asked the store for a recording, found by what they logged."""
    ids = {record.attributes.get("job.id") for record in sink.logs if f"/recordings/{recording}?" in str(record.body)}
    runs = [span for span in runs_of("transcribe", sink.spans) if span.attributes["job.id"] in ids]
    return sorted(runs, key=lambda span: span.start)


def outline(trace: list[tuple[int, Span]]) -> list[str]:
    # A SQLite database is called by its path, which is another one each time.
    names = [
        " ".join(word.rpartition("/")[2] if word.endswith(".db") else word for word in s.name.split()) for _, s in trace
    ]
    return [
        f"{'  ' * depth}{span.service} {span.kind} {name}" for (depth, span), name in zip(trace, names, strict=True)
    ]


def test_one_message_is_one_trace_from_the_bot_through_the_queue_to_sql_redis_and_http(system: System) -> None:
    (run,) = system.send("voice-901.ogg")
    trace = system.trace(run.trace_id, spans=11)

    assert outline(trace) == [
        "bot CLIENT POST",
        "  gateway SERVER POST /notes",
        "    gateway CLIENT INSERT notes.db",
        "    gateway PRODUCER send notes",
        "      worker CONSUMER process notes",
        "        worker CLIENT SELECT notes.db",
        "        worker CLIENT GET",
        "        worker CLIENT GET",
        "          store SERVER GET /recordings/{name}",
        "        worker CLIENT SET",
        "        worker CLIENT UPDATE notes.db",
    ]
    job = {
        "messaging.system": "redis",
        "messaging.destination.name": "notes",
        "messaging.message.id": run.attributes["job.id"],
        "job.name": "transcribe",
        "job.id": run.attributes["job.id"],
    }
    expected: list[dict[str, Any]] = [
        {"http.request.method": "POST", "http.response.status_code": 202},
        {"http.request.method": "POST", "http.route": "/notes", "http.response.status_code": 202},
        {"db.system.name": "sqlite"},
        {**job, "messaging.operation.name": "send", "messaging.operation.type": "send"},
        {
            **job,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "job.attempt": 1,
            "job.trigger": "api",
            "job.outcome": "success",
        },
        {"db.system.name": "sqlite"},
        {"db.system.name": "redis", "db.query.text": "GET ?"},
        {"http.request.method": "GET", "http.response.status_code": 200},
        {"http.route": "/recordings/{name}", "http.response.status_code": 200, "url.query": "token=[redacted]"},
        {"db.system.name": "redis"},
        {"db.system.name": "sqlite"},
    ]
    found = [span.attributes for _, span in trace]
    assert [
        {key: attributes.get(key) for key in wanted} for wanted, attributes in zip(expected, found, strict=True)
    ] == expected
    statements = [str(attributes["db.query.text"]).split()[0] for attributes in found if "db.query.text" in attributes]
    assert statements == ["INSERT", "SELECT", "GET", "SET", "UPDATE"]
    assert 0 <= run.attributes["job.wait.duration"] < 30
    assert {span.status for _, span in trace} == {"UNSET"}


def test_every_span_lies_within_the_time_of_the_one_that_waited_for_it(system: System) -> None:
    (run,) = system.send("voice-902.ogg")
    spans = {span.span_id: span for _, span in system.trace(run.trace_id, spans=11)}

    for span in spans.values():
        caller = spans.get(span.parent_id)
        if caller is not None and caller.kind != "PRODUCER":
            # Clients see the end of an answer before the server has closed its span.
            assert caller.start <= span.start <= caller.end, f"{span.name} outside {caller.name}"
    assert run.start >= spans[run.parent_id].start


def test_words_from_the_cache_need_no_store(system: System) -> None:
    (first,) = system.send("voice-903.ogg")
    before = len(runs_of("transcribe", system.sink.spans))
    system.pipeline.say("chat-1 /transcribe voice-903.ogg")
    system.sink.wait_for(lambda s: len(runs_of("transcribe", s.spans)) > before, timeout=30)

    (run,) = [
        span
        for span in runs_of("transcribe", system.sink.spans)
        if span.start > first.end and not holding("voice-903", traces(system.sink.spans)[span.trace_id])
    ]
    assert outline(system.trace(run.trace_id, spans=8))[4:] == [
        "      worker CONSUMER process notes",
        "        worker CLIENT SELECT notes.db",
        "        worker CLIENT GET",
        "        worker CLIENT UPDATE notes.db",
    ]


def test_retry_is_no_error_and_has_a_trace_of_its_own_that_links_the_attempt_before(system: System) -> None:
    first, second = system.send("flaky-904.ogg", runs=2)

    assert [first.attributes["job.attempt"], second.attributes["job.attempt"]] == [1, 2]
    assert [first.attributes["job.outcome"], second.attributes["job.outcome"]] == ["retry", "success"]
    assert [first.status, second.status] == ["UNSET", "UNSET"]
    assert second.trace_id != first.trace_id
    assert second.parent_id == ""
    assert (first.trace_id, first.span_id) in second.links
    assert second.attributes["job.trigger"] == "retry"
    # The second that it was told to wait is no waiting time.
    assert second.attributes["job.wait.duration"] < 1
    events = [record.event_name for record in records_of(first.trace_id, system.sink.logs) if record.event_name]
    assert "job.retried" in events
    assert "job.failed" not in events


def test_failure_marks_the_run_and_carries_its_exception(system: System) -> None:
    (run,) = system.send("broken-905.ogg")
    system.sink.wait_for(lambda s: any(r.event_name == "job.failed" and r.span_id == run.span_id for r in s.logs))

    assert run.status == "ERROR"
    assert run.attributes["job.outcome"] == "failure"
    assert run.attributes["error.type"] == "tasks.DamagedRecordingError"
    ((name, exception),) = run.events
    assert name == "exception"
    assert exception["exception.message"] == "cannot decode 'unknown'"
    (failed,) = [r for r in records_of(run.trace_id, system.sink.logs) if r.event_name == "job.failed"]
    assert failed.severity == "ERROR"
    assert failed.attributes["job.id"] == run.attributes["job.id"]


def test_reminder_starts_a_trace_of_its_own_linked_to_the_request_that_asked_for_it(system: System) -> None:
    system.pipeline.say("chat-1 /remind 1 water the plants")
    system.sink.wait_for(lambda s: runs_of("remind", s.spans), timeout=30)
    (run,) = runs_of("remind", system.sink.spans)

    assert run.parent_id == ""
    ((trace_id, producer_id),) = run.links
    (producer,) = [span for span in traces(system.sink.spans)[trace_id] if span.span_id == producer_id]
    assert (producer.service, producer.kind, producer.name) == ("gateway", "PRODUCER", "send notes")
    assert producer.attributes["job.delay"] == pytest.approx(1, abs=0.3)
    assert run.attributes["job.wait.duration"] < 1
    assert run.start - producer.end > 0.5


def test_scheduled_job_is_one_trace_from_the_clock_to_the_worker(system: System) -> None:
    system.sink.wait_for(lambda s: runs_of("nightly_report", s.spans), timeout=30)
    run = runs_of("nightly_report", system.sink.spans)[0]

    assert outline(system.trace(run.trace_id, spans=4)) == [
        "scheduler PRODUCER send notes",
        "  worker CONSUMER process notes",
        "    worker CLIENT SELECT notes.db",
        "    worker CLIENT HSET",
    ]
    assert run.attributes["job.trigger"] == "schedule"


def test_logs_of_all_services_carry_the_trace_and_those_of_the_worker_the_job(system: System) -> None:
    (run,) = system.send("voice-906.ogg")

    def events() -> list[str]:
        return [record.event_name for record in records_of(run.trace_id, system.sink.logs) if record.event_name]

    system.sink.wait_for(lambda _s: len(events()) >= 3)
    assert sorted(events()) == ["job.completed", "job.created", "job.started"]
    records = records_of(run.trace_id, system.sink.logs)
    assert {record.service for record in records} >= {"gateway", "worker"}
    said = [str(record.body) for record in records]
    assert "fetching /recordings/voice-906.ogg?token=[redacted]" in said
    job = {"job.name": "transcribe", "job.id": run.attributes["job.id"], "job.attempt": 1}
    for record in records:
        if record.service == "worker":
            assert {key: record.attributes.get(key) for key in job} == job, record.body
            assert record.span_id == run.span_id


def test_every_run_is_counted_once_by_how_it_ended(system: System) -> None:
    def counted() -> dict[tuple[str, ...], float]:
        return totals(system.sink.points, "job.executions", "job.name", "job.outcome")

    system.send("voice-907.ogg")
    system.send("flaky-908.ogg", runs=2)
    system.send("broken-909.ogg")

    def ended() -> dict[tuple[str, ...], float]:
        result: dict[tuple[str, ...], float] = {}
        for run in runs_of("transcribe", system.sink.spans):
            key = ("transcribe", str(run.attributes["job.outcome"]))
            result[key] = result.get(key, 0) + 1
        return result

    system.sink.wait_for(lambda _s: counted().items() >= ended().items(), timeout=15)
    assert counted()["transcribe", "lost"] == 0


def test_no_secret_leaves_a_process_although_urls_and_logs_hold_some(system: System) -> None:
    system.send("voice-910.ogg")

    for what, secret in system.pipeline.secrets.items():
        assert holding(secret, system.sink.spans, system.sink.logs, system.sink.points) == [], what
    assert holding("token=[redacted]", system.sink.spans)
    assert holding("token=[redacted]", system.sink.logs)


def test_polling_the_queue_makes_no_spans(system: System) -> None:
    system.send("voice-911.ogg")

    orphans = [span for span in system.sink.spans if span.service == "worker" and not span.parent_id]
    assert {span.kind for span in orphans} <= {"CONSUMER"}
