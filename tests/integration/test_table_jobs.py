"""`otel_kit.jobs.table`: what publishing and running rows of a real table leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from otel_kit.testing import LogRecord, OtlpSink, Span
from tests.integration.conftest import Programs

SCRIPT = '''
import asyncio, json, sqlite3, sys, time
from datetime import UTC, datetime, timedelta
import otel_kit
otel_kit.configure("app")
from opentelemetry import baggage, context, trace
from otel_kit.jobs import table

database = sqlite3.connect("jobs.db")
database.execute("""CREATE TABLE jobs (id INTEGER PRIMARY KEY, name TEXT UNIQUE, attempt INTEGER DEFAULT 1,
                    created_at TEXT DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')), run_at TEXT, carrier TEXT)""")
SYSTEM = {"queue": "q", "system": "sqlite"}

def insert(name, run_at=None, **options):
    sending = table.publish(name, run_at=run_at, **SYSTEM, **options)
    with sending as carrier, database:
        row = database.execute("INSERT INTO jobs (name, run_at, carrier) VALUES (?, ?, ?)",
                               (name, run_at and run_at.isoformat(), carrier))
        sending.identify(row.lastrowid)
    return row.lastrowid

def claim(name, **options):
    row = database.execute("SELECT id, attempt, created_at, run_at, carrier FROM jobs WHERE name = ?", (name,)).fetchone()
    return table.run(name, id=row[0], attempt=row[1], created_at=row[2], run_at=row[3], carrier=row[4],
                     timezone=UTC, **SYSTEM, **options)

def again(name, run, delay=0.0):
    database.execute("UPDATE jobs SET attempt = attempt + 1, carrier = ?, run_at = ? WHERE name = ?",
                     (run.carrier, (datetime.now(UTC) + timedelta(seconds=delay)).isoformat() if delay else None, name))
    print("ready", time.time() + delay)
    database.commit()

def attempt(name, work=lambda run: None, **options):
    run = claim(name, **options)
    try:
        with run:
            work(run)
    except BaseException as error:
        print(name, "raised", type(error).__name__, flush=True)
    return run

def fails(run): raise ZeroDivisionError("on purpose")

before = context.get_current()

# publishes
insert("plain"); time.sleep(0.3); attempt("plain")
insert("later", datetime.now(UTC) + timedelta(seconds=0.5)); time.sleep(0.9); attempt("later")
try:
    insert("plain")
except sqlite3.IntegrityError:
    print("plain refused", flush=True)
sending = table.publish("undone", id=77, **SYSTEM)
with sending as carrier:
    database.execute("INSERT INTO jobs (name, carrier) VALUES ('undone', ?)", (carrier,))
    database.rollback()
    sending.rolled_back()
called = table.publish("called", id="c-1", **SYSTEM).record()
with table.run("called", id="c-1", carrier=called, **SYSTEM): pass
assert context.get_current() == before, "a publish left something behind"

# outcomes
for name in ("failing", "said.retry", "said.fail", "said.reject", "said.skip", "expected", "stopped", "retried"):
    insert(name)
attempt("failing", fails)
attempt("said.retry", lambda run: run.retry(ConnectionError("swallowed")))
attempt("said.fail", lambda run: run.fail(ValueError("for good")), max_attempts=9)
attempt("said.reject", lambda run: run.reject(KeyError("payload")))
attempt("said.skip", lambda run: run.skip())
attempt("expected", fails, throws=ArithmeticError)
def stop(run): raise KeyboardInterrupt
attempt("stopped", stop, max_attempts=3)

# attempts
run = attempt("retried", fails, max_attempts=3)
again("retried", run); time.sleep(0.2)
run = attempt("retried", fails, max_attempts=3)
again("retried", run, delay=0.3); time.sleep(0.5)
run = attempt("retried", fails, max_attempts=3)

# what has no carrier of ours
for n, carrier in enumerate((None, "", "{no json", "[" * 9999, 7, {"traceparent": "\\ud800", "baggage": "%"}, b"\\xff")):
    with table.run("garbage", id=n, carrier=carrier, **SYSTEM): pass

# nested, and asynchronous
insert("outer")
def nests(run):
    insert("inner"); attempt("inner")
attempt("outer", nests)

async def main():
    async with table.publish("coroutine", id="a-1", **SYSTEM) as carrier:
        await asyncio.sleep(0.01)
    async with table.run("coroutine", id="a-1", carrier=carrier, **SYSTEM):
        trace.get_tracer("app").start_span("inside").end()
    async def cancelled():
        async with table.run("cancelled", id="a-2", **SYSTEM):
            await asyncio.sleep(60)
    async def side(name, seconds):
        async with table.run(name, id=name, **SYSTEM):
            await asyncio.sleep(seconds)
            trace.get_tracer("app").start_span("in " + name).end()
    task = asyncio.create_task(cancelled()); await asyncio.sleep(0.05); task.cancel()
    await asyncio.gather(task, side("left", 0.2), side("right", 0.1), return_exceptions=True)
asyncio.run(main())

# what travels with a job
token = context.attach(baggage.set_baggage("request.id", "r-1"))
insert("carrying"); context.detach(token)
attempt("carrying", lambda run: trace.get_current_span().set_attribute("seen", str(baggage.get_baggage("request.id"))))
assert context.get_current() == before, "a run left something behind"
worker = table.worker(["q", "r"], slots=3, names=["announced"])
time.sleep(1.2)
'''


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OtlpSink, str]]:
    """What the script sent, and what it printed."""
    with OtlpSink() as sink:
        programs = Programs(tmp_path_factory.mktemp("table"), sink)
        ran = programs.run(SCRIPT)
        assert ran.returncode == 0, ran.stderr
        assert "Traceback" not in ran.stderr, ran.stderr
        yield sink, ran.stdout


@pytest.fixture
def sent(story: tuple[OtlpSink, str]) -> OtlpSink:
    return story[0]


def _spans(sink: OtlpSink, job: str, kind: str) -> list[Span]:
    found = [span for span in sink.spans if span.attributes.get("job.name") == job and span.kind == kind]
    return sorted(found, key=lambda span: span.start)


def _run(sink: OtlpSink, job: str) -> Span:
    (run,) = _spans(sink, job, "CONSUMER")
    return run


def _send(sink: OtlpSink, job: str) -> Span:
    return _spans(sink, job, "PRODUCER")[0]


def _events(sink: OtlpSink, job: str) -> list[LogRecord]:
    found = [r for r in sink.logs if r.attributes.get("job.name") == job and r.event_name.startswith("job.")]
    return sorted(found, key=lambda record: record.time)


def _total(sink: OtlpSink, metric: str, **labels: str) -> float:
    wanted = {name.replace("__", "."): value for name, value in labels.items()}
    latest = {
        (p.resource["service.instance.id"], tuple(sorted(p.attributes.items()))): p.value
        for p in sink.points
        if p.name == metric and wanted.items() <= p.attributes.items()
    }
    return sum(latest.values())


def test_a_row_is_one_trace_from_its_insert_to_its_run(sent: OtlpSink) -> None:
    send, run = _send(sent, "plain"), _run(sent, "plain")
    assert (send.name, run.name) == ("send q", "process q")
    assert (run.trace_id, run.parent_id) == (send.trace_id, send.span_id)
    for span, operation in ((send, "send"), (run, "process")):
        assert span.attributes["messaging.system"] == "sqlite"
        assert span.attributes["messaging.operation.name"] == operation
        assert span.attributes["messaging.destination.name"] == "q"
        assert span.attributes["job.id"] == span.attributes["messaging.message.id"] == "1"
    assert [r.event_name for r in _events(sent, "plain")] == ["job.created", "job.started", "job.completed"]
    assert {r.attributes["job.id"] for r in _events(sent, "plain")} == {"1"}
    assert run.attributes["job.outcome"] == "success"


def test_a_wait_begins_when_the_row_is_made(sent: OtlpSink) -> None:
    run = _run(sent, "plain")
    assert run.attributes["job.wait.duration"] == pytest.approx(run.start - _send(sent, "plain").start, abs=0.05)
    assert run.attributes["job.wait.duration"] == pytest.approx(
        0.3, abs=0.05 + run.start - _send(sent, "plain").end - 0.3
    )


def test_a_wait_begins_at_run_at_and_a_delayed_run_links_to_its_publish(sent: OtlpSink) -> None:
    send, run = _send(sent, "later"), _run(sent, "later")
    assert send.attributes["job.delay"] == pytest.approx(0.5, abs=0.05)
    wanted = send.start + send.attributes["job.delay"]
    assert run.attributes["job.wait.duration"] == pytest.approx(run.start - wanted, abs=0.05)
    assert run.trace_id != send.trace_id
    assert (send.trace_id, send.span_id) in run.links


def test_an_insert_that_fails_is_an_error_of_its_publish_and_no_job(story: tuple[OtlpSink, str]) -> None:
    sent, output = story
    assert "plain refused" in output
    failed = _spans(sent, "plain", "PRODUCER")[1]
    assert failed.status == "ERROR"
    assert failed.attributes["error.type"] == "sqlite3.IntegrityError"
    assert len([r for r in _events(sent, "plain") if r.event_name == "job.created"]) == 1
    assert _total(sent, "messaging.client.sent.messages", error__type="sqlite3.IntegrityError") == 1


def test_a_rollback_without_an_error_is_said(sent: OtlpSink) -> None:
    send = _send(sent, "undone")
    assert send.status == "ERROR"
    assert send.attributes["error.type"].endswith("RolledBackError")
    assert _events(sent, "undone") == []


def test_a_publish_can_be_a_plain_call(sent: OtlpSink) -> None:
    send, run = _send(sent, "called"), _run(sent, "called")
    assert run.parent_id == send.span_id
    assert send.attributes["job.id"] == "c-1"


@pytest.mark.parametrize(
    ("job", "outcome", "status", "event", "severity"),
    [
        ("failing", "failure", "ERROR", "job.failed", "ERROR"),
        ("said.retry", "retry", "UNSET", "job.retried", "WARN"),
        ("said.fail", "failure", "ERROR", "job.failed", "ERROR"),
        ("said.reject", "rejected", "UNSET", "job.rejected", "WARN"),
        ("said.skip", "skipped", "UNSET", "job.skipped", "WARN"),
        ("expected", "failure", "UNSET", "job.failed", "WARN"),
        ("stopped", "revoked", "UNSET", "job.revoked", "WARN"),
        ("cancelled", "revoked", "UNSET", "job.revoked", "WARN"),
    ],
)
def test_a_run_ends_as_the_exception_or_the_caller_says(
    sent: OtlpSink, job: str, outcome: str, status: str, event: str, severity: str
) -> None:
    run = _run(sent, job)
    assert (run.attributes["job.outcome"], run.status) == (outcome, status)
    assert (_events(sent, job)[-1].event_name, _events(sent, job)[-1].severity) == (event, severity)
    assert _total(sent, "job.executions", job__name=job, job__outcome=outcome) == 1
    assert _total(sent, "job.executions", job__name=job) == 1


def test_what_the_work_raises_reaches_the_caller(story: tuple[OtlpSink, str]) -> None:
    for line in (
        "failing raised ZeroDivisionError",
        "expected raised ZeroDivisionError",
        "stopped raised KeyboardInterrupt",
    ):
        assert line in story[1]
    assert "said.retry raised" not in story[1]
    assert _run(story[0], "said.retry").attributes["error.type"] == "ConnectionError"


def test_each_attempt_links_the_publish_and_the_attempt_before(sent: OtlpSink) -> None:
    send, runs = _send(sent, "retried"), _spans(sent, "retried", "CONSUMER")
    assert [run.attributes["job.outcome"] for run in runs] == ["retry", "retry", "failure"]
    assert [run.attributes["job.attempt"] for run in runs] == [1, 2, 3]
    assert [run.attributes["job.trigger"] for run in runs] == ["manual", "retry", "retry"]
    assert [run.status for run in runs] == ["UNSET", "UNSET", "ERROR"]
    published = (send.trace_id, send.span_id)
    for before, after in pairwise(runs):
        assert after.links == [published, (before.trace_id, before.span_id)]
    assert len({run.trace_id for run in runs}) == 3


def test_a_retrys_wait_begins_at_the_retry_or_at_its_run_at(story: tuple[OtlpSink, str]) -> None:
    _first, *retries = _spans(story[0], "retried", "CONSUMER")
    ready = [float(line.split()[1]) for line in story[1].splitlines() if line.startswith("ready ")]
    waits = [run.attributes["job.wait.duration"] for run in retries]
    assert waits == pytest.approx([run.start - at for run, at in zip(retries, ready, strict=True)], abs=0.05)


def test_a_carrier_that_is_none_of_ours_is_a_trace_of_its_own(sent: OtlpSink) -> None:
    runs = _spans(sent, "garbage", "CONSUMER")
    assert len(runs) == 7
    assert {(run.parent_id, len(run.links), run.attributes["job.outcome"]) for run in runs} == {("", 0, "success")}


def test_a_publish_inside_a_run_goes_on_with_its_trace(sent: OtlpSink) -> None:
    outer, send, inner = _run(sent, "outer"), _send(sent, "inner"), _run(sent, "inner")
    assert send.parent_id == outer.span_id
    assert inner.parent_id == send.span_id
    assert outer.trace_id == inner.trace_id


def test_coroutines_publish_and_run_without_mixing_their_spans(sent: OtlpSink) -> None:
    run = _run(sent, "coroutine")
    assert run.parent_id == _send(sent, "coroutine").span_id
    inside = {span.name: span.parent_id for span in sent.spans if span.scope == "app"}
    assert inside["inside"] == run.span_id
    assert inside["in left"] == _run(sent, "left").span_id
    assert inside["in right"] == _run(sent, "right").span_id


def test_baggage_travels_with_the_row(sent: OtlpSink) -> None:
    assert _run(sent, "carrying").attributes["seen"] == "r-1"


def test_a_worker_announces_its_slots_and_its_jobs(sent: OtlpSink) -> None:
    slots = [p for p in sent.points if p.name == "job.worker.slots"]
    assert (slots[-1].value, slots[-1].attributes["messaging.destination.name"]) == (3, "q,r")
    lost = [p for p in sent.points if p.name == "job.executions" and p.attributes["job.name"] == "announced"]
    assert {p.attributes["messaging.destination.name"] for p in lost} == {"q", "r"}
    assert {p.value for p in lost} == {0}
    beats = {p.attributes["source"] for p in sent.points if p.name == "job.worker.heartbeat.time"}
    assert beats == {"thread", "loop"}
