"""Celery with real Redis and real workers: all the ways in which a job can go, and each is told once."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis

from otel_kit.testing import OtlpSink
from tests.integration.celery_worker import Worker
from tests.integration.conftest import Programs, eventually, free_port

APP = """
import logging, os, signal, sys, time
import otel_kit
otel_kit.configure(os.environ.get("OTEL_SERVICE_NAME", "worker"))
from celery import Celery, chain, chord, group
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

app = Celery("jobs", broker=os.environ["BROKER"], backend=os.environ.get("BACKEND", os.environ["BROKER"]))
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_prefetch_multiplier = 1
app.conf.result_chord_retry_interval = 0.2

@app.task(name="add")
def add(a, b):
    return a + b

@app.task(name="total")
def total(numbers):
    return sum(numbers)

@app.task(name="slow", acks_late=True)
def slow(seconds):
    time.sleep(seconds)

@app.task(name="soft", soft_time_limit=1)
def soft():
    time.sleep(20)

@app.task(name="hard", time_limit=1)
def hard():
    time.sleep(20)

@app.task(name="back.off", autoretry_for=(ConnectionError,), retry_backoff=True, retry_jitter=False, max_retries=1)
def back_off():
    raise ConnectionError("always")

@app.task(name="once.more", bind=True, acks_late=True)
def once_more(self):
    if not self.request.delivery_info.get("redelivered"):
        raise Reject("not now", requeue=True)

@app.task(name="reject", acks_late=True)
def reject():
    raise Reject("never", requeue=False)

@app.task(name="die.once", bind=True, acks_late=True, reject_on_worker_lost=True)
def die_once(self):
    if not self.request.delivery_info.get("redelivered"):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

@app.task(name="leave")
def leave():
    time.sleep(0.5)
    sys.exit(3)

@app.task(name="told")
def told(request, exc, traceback):
    pass

@app.task(name="informed", bind=True)
def informed(self, uuid):
    pass

@app.task(name="die")
def die():
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)

@app.task(name="limited", rate_limit="2/s")
def limited():
    pass

@app.task(name="recursive", bind=True, max_retries=2)
def recursive(self):
    if self.request.retries < 2:
        raise self.retry(exc=ConnectionError("again"), countdown=0)
"""


@pytest.fixture
def worker(programs: Programs, sink: OtlpSink, redis_url: str) -> Worker:
    return Worker(programs, sink, redis_url, APP)


def inject(broker: str, body: bytes, headers: dict[str, Any], content_type: str = "application/json") -> None:
    """Put a message into the queue as Kombu would, whatever it holds."""
    properties = {
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "celery"},
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }
    message = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": content_type,
        "headers": headers,
        "properties": properties,
    }
    with redis.Redis.from_url(broker) as client:
        client.lpush("celery", json.dumps(message))


def test_a_chain_is_one_trace(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "2")
    worker.publish("chain(add.s(1, 1), add.s(2), add.s(3)).delay()")
    sink.wait_for(lambda _: len(worker.runs("add")) == 3)
    worker.stop()
    runs = sorted(worker.runs("add"), key=lambda span: span.start)
    sends = worker.spans("PRODUCER", "add")
    assert len({span.trace_id for span in (*runs, *sends)}) == 1
    assert [run.parent_id for run in runs] == [send.span_id for send in sends]
    assert [send.parent_id for send in sends[1:]] == [run.span_id for run in runs[:2]]
    assert worker.executions() == {("add", "success"): 3}


@pytest.mark.parametrize("backend", ["redis", "polling"])
def test_a_chord_is_one_trace_without_its_machinery(
    worker: Worker, programs: Programs, sink: OtlpSink, backend: str
) -> None:
    """Redis counts the header's jobs itself; with other backends a job of Celery's own looks again and again."""
    folder = programs.directory / "results"
    folder.mkdir()
    backends = {} if backend == "redis" else {"BACKEND": f"file://{folder}"}
    worker.start("--concurrency", "2", **backends)
    ran = programs.run(
        """
from jobs import *
from opentelemetry import trace
with trace.get_tracer("test").start_as_current_span("caller"):
    chord([add.s(n, n) for n in range(3)])(total.s())
""",
        BROKER=worker.broker, OTEL_SERVICE_NAME="producer", **backends,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    sink.wait_for(lambda _: worker.runs("total"), 30)
    worker.stop()
    [caller] = [span for span in sink.spans if span.name == "caller"]
    jobs = [span for span in sink.spans if "job.name" in span.attributes]
    assert {span.trace_id for span in jobs} == {caller.trace_id}
    assert {span.attributes["job.name"] for span in jobs} == {"add", "total"}
    assert len(worker.runs("add")) == 3
    assert worker.executions() == {("add", "success"): 3, ("total", "success"): 1}
    names = {p.attributes["job.name"] for p in sink.points if "job.name" in p.attributes}
    assert not [name for name in names if name.startswith("celery.")]
    assert not [r for r in sink.logs if r.event_name and "celery." in r.attributes.get("job.name", "")]
    sent = [p for p in sink.points if p.name == "messaging.client.sent.messages" and p.service == "producer"]
    assert max(point.value for point in sent) == 3


def test_callbacks_and_errbacks_belong_to_their_jobs_trace(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("""
add.apply_async((1, 2), link=add.s(10), task_id="linked")
die.apply_async(link_error=informed.s(), task_id="dies")
""")
    sink.wait_for(lambda _: worker.runs("informed") and len(worker.runs("add")) == 2, 30)
    worker.stop()
    first, second = sorted(worker.runs("add"), key=lambda span: span.start)
    assert first.trace_id == second.trace_id
    # The main process has sent this one, in the dead child's name.
    [dead], [informed] = worker.runs("die"), worker.runs("informed")
    assert dead.attributes["job.outcome"] == "lost"
    assert informed.trace_id == dead.trace_id


def test_the_span_of_a_dead_run_has_the_ids_that_its_logs_have(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("die.delay()")
    sink.wait_for(lambda _: worker.runs("die"))
    worker.stop()
    [run], [started], [lost] = worker.runs("die"), worker.records("job.started"), worker.records("job.lost")
    assert {(r.trace_id, r.span_id) for r in (started, lost)} == {(run.trace_id, run.span_id)}


def test_a_metrics_exemplar_leads_to_the_run_in_the_child(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("recursive.delay()")
    sink.wait_for(lambda _: len(worker.runs("recursive")) == 3)
    worker.stop()
    runs = {(run.trace_id, run.span_id) for run in worker.runs("recursive")}
    exemplars = {
        (trace_id, span_id)
        for point in sink.points
        if point.name == "job.duration"
        for trace_id, span_id, _value in point.exemplars
    }
    assert exemplars
    assert exemplars <= runs
    # Nothing of that is in the message of a retry.
    first, second, third = worker.spans("CONSUMER", "recursive")
    assert len({first.span_id, second.span_id, third.span_id}) == 3
    assert (first.trace_id, first.span_id) in second.links
    assert (second.trace_id, second.span_id) in third.links


def test_a_job_that_is_revoked_before_its_start_never_runs(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("""
slow.delay(2)
time.sleep(1)
add.apply_async((1, 1), task_id="unwanted")
app.control.revoke("unwanted")
""")
    eventually(lambda: worker.executions().get(("add", "revoked")) == 1)
    worker.stop()
    assert worker.runs("add") == []
    assert worker.executions() == {("slow", "success"): 1, ("add", "revoked"): 1}
    [revoked] = worker.records("job.revoked")
    assert revoked.attributes["job.id"] == "unwanted"
    assert worker.last("messaging.client.consumed.messages") == 2


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_job_that_is_terminated_while_it_runs_is_revoked(worker: Worker, sink: OtlpSink, pool: str) -> None:
    worker.start("--pool", pool, "--concurrency", "2")
    worker.publish("slow.apply_async((120,), task_id='unwanted')")
    sink.wait_for(lambda _: "job.started" in worker.events())
    worker.publish("app.control.revoke('unwanted', terminate=True)")
    sink.wait_for(lambda _: worker.runs("slow"))
    worker.stop()
    [run] = worker.runs("slow")
    assert (run.status, run.attributes["job.outcome"]) == ("UNSET", "revoked")
    assert worker.executions() == {("slow", "revoked"): 1}
    assert worker.events() == ["job.created", "job.started", "job.revoked"]
    assert worker.last("job.active", job__name="slow") == 0


def test_a_soft_time_limit_is_a_failure_of_category_timeout(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("soft.delay()")
    sink.wait_for(lambda _: worker.runs("soft"))
    worker.stop()
    [run] = worker.runs("soft")
    assert (run.status, run.attributes["job.outcome"]) == ("ERROR", "failure")
    assert run.attributes["job.error.category"] == "timeout"
    assert run.end - run.start == pytest.approx(1, abs=0.5)
    assert worker.executions() == {("soft", "failure"): 1}
    assert worker.last("job.max_runtime", job__name="soft") == 1


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_hard_time_limit_loses_the_run(worker: Worker, sink: OtlpSink, pool: str) -> None:
    worker.start("--pool", pool, "--concurrency", "2")
    worker.publish("hard.delay()")
    sink.wait_for(lambda _: worker.runs("hard"))
    worker.stop()
    [run] = worker.runs("hard")
    assert (run.status, run.attributes["job.outcome"]) == ("ERROR", "lost")
    assert run.attributes["job.error.category"] == "timeout"
    assert worker.executions() == {("hard", "lost"): 1}
    assert worker.events() == ["job.created", "job.started", "job.lost"]
    assert worker.last("job.active", job__name="hard") == 0


def test_automatic_retries_wait_from_their_due_time(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("back_off.delay()")
    sink.wait_for(lambda _: len(worker.runs("back.off")) == 2)
    worker.stop()
    first, second = worker.spans("CONSUMER", "back.off")
    assert [run.attributes["job.outcome"] for run in (first, second)] == ["retry", "failure"]
    assert [run.status for run in (first, second)] == ["UNSET", "ERROR"]
    assert second.attributes["error.type"] == "ConnectionError"
    resend = worker.spans("PRODUCER", "back.off")[1]
    due = resend.start + resend.attributes["job.delay"]
    assert second.attributes["job.wait.duration"] == pytest.approx(max(0.0, second.start - due), abs=0.05)
    assert worker.executions() == {("back.off", "retry"): 1, ("back.off", "failure"): 1}


def test_a_rejected_message_that_comes_again_runs_again(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("once_more.delay(); reject.delay()")
    sink.wait_for(lambda _: len(worker.runs("once.more")) == 2 and worker.runs("reject"), 30)
    worker.stop()
    outcomes = [run.attributes["job.outcome"] for run in worker.spans("CONSUMER", "once.more")]
    assert outcomes == ["rejected", "success"]
    assert worker.executions() == {("once.more", "rejected"): 1, ("once.more", "success"): 1, ("reject", "rejected"): 1}
    assert worker.last("messaging.client.consumed.messages") == 3


def test_a_job_whose_child_dies_is_lost_and_runs_again_where_it_may(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("die_once.delay()")
    sink.wait_for(lambda _: len(worker.runs("die.once")) == 2, 30)
    worker.stop()
    lost, done = worker.spans("CONSUMER", "die.once")
    assert [run.attributes["job.outcome"] for run in (lost, done)] == ["lost", "success"]
    assert lost.trace_id == done.trace_id
    assert worker.executions() == {("die.once", "lost"): 1, ("die.once", "success"): 1}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_job_that_leaves_the_process_is_lost(worker: Worker, sink: OtlpSink, pool: str) -> None:
    worker.start("--pool", pool, "--concurrency", "1")
    worker.publish("leave.delay()")
    eventually(lambda: worker.runs("leave") and worker.executions() == {("leave", "lost"): 1}, 40)
    [run] = worker.runs("leave")
    assert (run.status, run.attributes["job.outcome"]) == ("ERROR", "lost")


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_cold_shutdown_loses_the_run_once(worker: Worker, sink: OtlpSink, pool: str) -> None:
    worker.start("--pool", pool, "--concurrency", "2", OTEL_KIT_LEASE_TTL="1")
    worker.publish("slow.delay(60)")
    sink.wait_for(lambda _: "job.started" in worker.events())
    worker.process.send_signal(signal.SIGQUIT)
    worker.process.wait(30)
    eventually(lambda: worker.runs("slow") and worker.executions(), 30)
    [run] = worker.runs("slow")
    assert (run.status, run.attributes["job.outcome"]) == ("ERROR", "lost")
    assert worker.events() == ["job.created", "job.started", "job.lost"]
    assert worker.executions() == {("slow", "lost"): 1}


def test_zero_code_telemetry_follows_gevent_as_celery_starts_it(
    worker: Worker, programs: Programs, sink: OtlpSink
) -> None:
    programs.write("jobs", APP.replace("import otel_kit\n", "").replace("otel_kit.configure(", "str("))
    process = programs.start(
        sys.executable, "-m", "otel_kit.cli.main", "run", "--", sys.executable, "-m", "celery", "-A", "jobs", "worker",
        "--pool", "gevent", "--concurrency", "2", "--loglevel", "info", "--without-mingle", "--without-gossip",
        BROKER=worker.broker, OTEL_SERVICE_NAME="worker",
    )  # fmt: skip
    eventually(lambda: " ready." in programs.output(process), 30)
    ran = programs.run("from jobs import *\nadd.delay(1, 1)", BROKER=worker.broker)
    assert ran.returncode == 0, ran.stderr
    sink.wait_for(lambda _: worker.runs("add"))
    process.terminate()
    process.wait(20)
    [run] = worker.runs("add")
    assert run.attributes["job.outcome"] == "success"
    assert worker.executions() == {("add", "success"): 1}


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_waits_are_right_in_every_pool(worker: Worker, sink: OtlpSink, pool: str) -> None:
    worker.start("--pool", pool, "--concurrency", "2")
    worker.publish("""
from datetime import datetime, timedelta, timezone
add.apply_async((1, 1), task_id="at once")
add.apply_async((1, 1), countdown=1.5, task_id="countdown")
add.apply_async((1, 1), eta=datetime.now(timezone.utc) + timedelta(seconds=1.5), task_id="eta")
add.apply_async((1, 1), eta=datetime.now(timezone.utc).replace(tzinfo=None) + timedelta(seconds=1.5), task_id="naive")
add.apply_async((1, 1), priority=9, task_id="priority")
""")
    sink.wait_for(lambda _: len(worker.runs("add")) == 5, 30)
    worker.stop()
    sends = {send.attributes["job.id"]: send for send in worker.spans("PRODUCER", "add")}
    for run in worker.runs("add"):
        send = sends[run.attributes["job.id"]]
        ready_at = send.start + send.attributes.get("job.delay", 0.0)
        waited = run.attributes["job.wait.duration"]
        assert waited == pytest.approx(max(0.0, run.start - ready_at), abs=0.05), run.attributes["job.id"]
    delays = {job_id: send.attributes.get("job.delay") for job_id, send in sends.items()}
    assert delays.pop("at once") is delays.pop("priority") is None
    assert delays == pytest.approx(dict.fromkeys(("countdown", "eta", "naive"), 1.5), abs=0.1)
    assert worker.executions() == {("add", "success"): 5}


def test_a_rate_limit_is_part_of_the_wait(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "4")
    worker.publish("for _ in range(4): limited.delay()")
    sink.wait_for(lambda _: len(worker.runs("limited")) == 4)
    worker.stop()
    waits = sorted(run.attributes["job.wait.duration"] for run in worker.runs("limited"))
    assert waits == pytest.approx([waits[0], waits[0] + 0.5, waits[0] + 1.0, waits[0] + 1.5], abs=0.3)


@pytest.mark.parametrize(
    ("what", "body", "headers", "content_type"),
    [
        ("unknown task", b'[[], {}, {"chain": null}]', {"task": "no.such", "id": "x"}, "application/json"),
        ("no JSON", b"{no json", {"task": "add", "id": "x"}, "application/json"),
        ("a forbidden kind", b"\x80\x04.", {"task": "add", "id": "x"}, "application/x-python-serialize"),
        ("no list", b'{"args": [1, 2], "kwargs": 5}', {"task": "add", "id": "x"}, "application/json"),
        ("an ETA that is none", b'[[], {}, {"chain": null}]', {"task": "add", "id": "x", "eta": "noon"}, "application/json"),
        ("no task at all", b'{"hello": 1}', {}, "application/json"),
        ("no task, no JSON", b"hello", {}, "application/json"),
    ],
)  # fmt: skip
def test_a_message_that_can_become_no_run_is_rejected_and_the_worker_goes_on(
    worker: Worker, sink: OtlpSink, what: str, body: bytes, headers: dict[str, Any], content_type: str
) -> None:
    worker.start("--concurrency", "1")
    inject(worker.broker, body, headers, content_type)
    worker.publish("total.delay([1])")
    sink.wait_for(lambda _: worker.runs("total"))
    worker.stop()
    name = headers.get("task", "unknown")
    assert worker.executions() == {(name, "rejected"): 1, ("total", "success"): 1}
    [rejected] = worker.records("job.rejected")
    assert (rejected.attributes["job.name"], rejected.severity) == (name, "WARN")
    assert rejected.attributes["error.type"]
    assert worker.last("messaging.client.consumed.messages") == 2


@pytest.mark.parametrize("body", [b"5", b"[1]"])
def test_a_message_that_ends_the_worker_is_known_by_name(worker: Worker, sink: OtlpSink, body: bytes) -> None:
    """That it does is Celery's own way with a body of another shape than a task's."""
    worker.start("--concurrency", "1")
    inject(worker.broker, body, {"task": "add", "id": "poison"})
    assert worker.process.wait(30) == 1
    [rejected] = worker.records("job.rejected")
    assert (rejected.attributes["job.name"], rejected.attributes["job.id"]) == ("add", "poison")
    assert worker.executions() == {("add", "rejected"): 1}


def test_a_function_that_is_declared_to_be_a_job_is_one_run_with_what_it_says(worker: Worker, sink: OtlpSink) -> None:
    declared = """
@app.task
@otel_kit.job(max_runtime=7, expected=KeyError)
def declared():
    raise KeyError("may happen")
"""
    worker.programs.write("jobs", APP + declared)
    worker.start("--concurrency", "1")
    worker.publish("declared.delay()")
    sink.wait_for(lambda _: worker.runs("jobs.declared"))
    worker.stop()
    assert [span.status for span in sink.spans if span.attributes.get("job.name") == "jobs.declared"] == ["UNSET"] * 2
    assert worker.executions() == {("jobs.declared", "failure"): 1}
    assert worker.last("job.max_runtime", job__name="jobs.declared") == 7


def test_a_retry_inside_an_eager_job_leaves_no_span_open(programs: Programs, sink: OtlpSink, redis_url: str) -> None:
    programs.write("jobs", APP)
    ran = programs.run(
        """
from jobs import *
from opentelemetry import trace
tracer = trace.get_tracer("test")
with tracer.start_as_current_span("caller"):
    print(recursive.apply().state)
    with tracer.start_as_current_span("after"):
        pass
""",
        BROKER=redis_url,
    )
    assert ran.stdout == "SUCCESS\n", ran.stderr
    [caller] = [span for span in sink.spans if span.name == "caller"]
    [after] = [span for span in sink.spans if span.name == "after"]
    assert after.parent_id == caller.span_id
    runs = sorted((s for s in sink.spans if s.name == "recursive"), key=lambda span: span.start)
    assert [run.attributes["job.outcome"] for run in runs] == ["retry", "retry", "success"]
    counted = [p for p in sink.points if p.name == "job.executions"]
    latest = {p.attributes["job.outcome"]: p.value for p in counted}
    assert {outcome: count for outcome, count in latest.items() if count} == {"retry": 2, "success": 1}


PUBLISHING = """
from jobs import *
from opentelemetry import context, trace
app.conf.task_publish_retry = False
{instrument}
before = context.get_current()
try:
    {publish}
except Exception as error:
    print(type(error).__name__)
print(context.get_current() == before)
"""


@pytest.mark.parametrize("publish", ["add.delay(1, 1)", "app.send_task('elsewhere', queue='far')"])
def test_a_publish_to_a_dead_broker_is_told_and_leaves_no_context(
    programs: Programs, sink: OtlpSink, publish: str
) -> None:
    programs.write("jobs", APP)
    ran = programs.run(
        PUBLISHING.format(instrument="", publish=publish),
        BROKER=f"redis://127.0.0.1:{free_port()}/0",
        BACKEND="disabled://",
    )
    assert ran.stdout == "OperationalError\nTrue\n", ran.stdout + ran.stderr
    [send] = [span for span in sink.spans if span.kind == "PRODUCER"]
    assert (send.status, send.attributes["error.type"]) == ("ERROR", "kombu.exceptions.OperationalError")
    assert send.attributes["job.name"] == ("add" if "add" in publish else "elsewhere")
    sent = {p.attributes.get("error.type"): p.value for p in sink.points if p.name == "messaging.client.sent.messages"}
    assert sent == {"kombu.exceptions.OperationalError": 1}


def test_upstreams_instrumentation_leaves_the_context_of_a_failed_publish_behind(
    programs: Programs, sink: OtlpSink
) -> None:
    """What ours is there for: the same program with theirs."""
    programs.write("jobs", APP.replace("otel_kit.configure(", "otel_kit.configure(instrument=False, service_name="))
    theirs = "from opentelemetry.instrumentation.celery import CeleryInstrumentor as Theirs; Theirs().instrument()"
    ran = programs.run(
        PUBLISHING.format(instrument=theirs, publish="add.delay(1, 1)"),
        BROKER=f"redis://127.0.0.1:{free_port()}/0", BACKEND="disabled://",
    )  # fmt: skip
    assert ran.stdout == "OperationalError\nFalse\n", ran.stdout + ran.stderr
    assert [span for span in sink.spans if span.kind == "PRODUCER"] == []


def test_a_job_is_sent_by_its_name_alone(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("app.send_task('add', (1, 2))")
    sink.wait_for(lambda _: worker.runs("add"))
    worker.stop()
    [send], [run] = worker.spans("PRODUCER", "add"), worker.runs("add")
    assert (run.trace_id, run.parent_id) == (send.trace_id, send.span_id)


def test_the_example_runs(programs: Programs, sink: OtlpSink, redis_url: str) -> None:
    for file in (Path(__file__).parents[2] / "examples" / "celery").glob("*.py"):
        programs.write(file.stem, file.read_text())
    command = (sys.executable, "-m", "celery", "-A", "worker", "worker", "--concurrency", "2", "--without-mingle")
    process = programs.start(*command, "--loglevel", "info", REDIS_URL=redis_url)
    eventually(lambda: " ready." in programs.output(process), 60)
    ran = subprocess.run(
        [sys.executable, "office.py", "3"],
        cwd=programs.directory, env=programs.environment(REDIS_URL=redis_url), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr

    def ended(name: str) -> int:
        runs = [span for span in sink.spans if span.kind == "CONSUMER" and span.attributes["job.name"] == name]
        return sum(span.attributes["job.outcome"] in ("success", "failure") for span in runs)

    # Each parcel is weighed once and delivered twice: by the chain, and two seconds later.
    sink.wait_for(lambda _: ended("weigh") == 3 and ended("deliver") == 6, 60)
    assert programs.stop(process, 30) == 0
    assert {span.service for span in sink.spans} == {"office", "parcels"}
