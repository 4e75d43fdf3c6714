"""RQ with real Redis and real workers: what is special to it. The common scenarios are in tests/frameworks."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from otel_kit.integrations.rq import messages, schedules
from otel_kit.integrations.rq.queues import from_url
from otel_kit.integrations.rq.report import Line, Report
from otel_kit.jobs import errors
from otel_kit.jobs.model import Outcome
from otel_kit.testing import LogRecord, OtlpSink, Span
from tests.integration.conftest import BIN, Programs, eventually, free_port

APP = """
import json, os, signal, sys, time
from datetime import datetime, timedelta, timezone
import redis
from rq import Callback, Queue, Repeat, Retry, SimpleWorker, SpawnWorker, Worker, get_current_job
from rq.command import send_stop_job_command
from rq.group import Group
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.cron import CronScheduler, CronJob
import otel_kit
from otel_kit.jobs.decorator import job
otel_kit.configure()

connection = redis.Redis.from_url(os.environ["BROKER"])
cache = redis.Redis.from_url(os.environ.get("CACHE", os.environ["BROKER"]))
queue = Queue("jobs", connection=connection)

def succeed(number=0):
    cache.set("number", number)
    return number

def fail(given="", note=""):
    raise ZeroDivisionError("on purpose")

class Expected(Exception):
    pass

@job("expected", expected=Expected)
def fail_as_expected():
    raise Expected("may happen")

def slow(seconds):
    time.sleep(seconds)

def die():
    time.sleep(0.7)
    os.kill(os.getpid(), signal.SIGKILL)

def die_once():
    if get_current_job().retries_left:
        die()

def ask_for_retry(most, interval=0):
    return Retry(max=most, interval=interval)

def unpicklable():
    return lambda: None

def overwrite_meta():
    this = get_current_job()
    this.meta["mine"] = 1
    this.save_meta()

def on_success(job, connection, result, *args):
    cache.set("callback", 1)

class Account:
    def close(self):
        pass

def work(kind=Worker, queues=("jobs",), **options):
    worker = kind(list(queues), connection=connection, **options.pop("worker", {}))
    worker.work(logging_level="INFO", **options)
"""


class Bench:
    """A worker under test and what publishes to it."""

    def __init__(self, programs: Programs, sink: OtlpSink, broker: str) -> None:
        self.programs, self.sink, self.broker = programs, sink, broker
        programs.write("app", APP)

    def start(self, arguments: str = "", **environment: str) -> None:
        command = f"from app import *; work({arguments})"
        chosen = {"BROKER": self.broker, "OTEL_SERVICE_NAME": "worker", **environment}
        self.process = self.programs.start(sys.executable, "-c", command, **chosen)
        self.await_worker()

    def await_worker(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.output()
            return "Listening on" in self.output()

        eventually(ready, 30)

    def output(self) -> str:
        return self.programs.output(self.process)

    def publish(self, code: str, **environment: str) -> str:
        chosen = {"BROKER": self.broker, "OTEL_SERVICE_NAME": "producer", **environment}
        ran = self.programs.run(f"from app import *\n{code}", **chosen)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def runs(self, name: str) -> list[Span]:
        found = [span for span in self.sink.spans if "job.outcome" in span.attributes]
        return sorted((s for s in found if s.attributes["job.name"] == name), key=lambda span: span.start)

    def sends(self, name: str) -> list[Span]:
        found = [span for span in self.sink.spans if span.kind == "PRODUCER" and span.attributes["job.name"] == name]
        return sorted(found, key=lambda span: span.start)

    def events(self, name: str) -> list[LogRecord]:
        found = [r for r in self.sink.logs if r.event_name and r.attributes.get("job.name") == name]
        return sorted(found, key=lambda record: record.time)

    def executions(self) -> dict[tuple[str, str], int]:
        """Runs by name and outcome, summed over processes, zeros left out."""
        latest = {
            (p.resource["service.instance.id"], p.attributes["job.name"], p.attributes["job.outcome"]): p.value
            for p in list(self.sink.points)
            if p.name == "job.executions"
        }
        total: Counter[tuple[str, str]] = Counter()
        for (_instance, name, outcome), count in latest.items():
            total[name, outcome] += int(count)
        return {key: count for key, count in total.items() if count}

    def last(self, metric: str, **labels: str) -> float | None:
        """The last value of a gauge."""
        wanted = {key.replace("__", "."): value for key, value in labels.items()}
        found = [p for p in list(self.sink.points) if p.name == metric and wanted.items() <= p.attributes.items()]
        return max(found, key=lambda point: point.time).value if found else None

    def redis(self) -> Any:
        return redis.Redis.from_url(self.broker)

    def within(self, timeout: float, condition: Any) -> None:
        try:
            eventually(condition, timeout)
        except AssertionError as late:
            outputs = "\n".join(self.programs.output(each)[-3000:] for each in self.programs.running)
            raise AssertionError(f"{late}\n{self.executions()}\n{outputs}") from None


@pytest.fixture
def bench(programs: Programs, sink: OtlpSink, redis_url: str) -> Bench:
    return Bench(programs, sink, redis_url)


def test_a_job_is_one_trace_of_its_publish_its_run_and_what_it_does(bench: Bench, sink: OtlpSink) -> None:
    bench.start()
    bench.publish("""
from opentelemetry import trace
with trace.get_tracer("test").start_as_current_span("request", kind=trace.SpanKind.SERVER):
    queue.enqueue(succeed, 5, on_success=Callback(on_success))
""")
    bench.within(20, lambda: bench.executions() == {("app.succeed", "success"): 1} and bench.runs("app.succeed"))
    (send,), (run,) = bench.sends("app.succeed"), bench.runs("app.succeed")
    request = next(span for span in sink.spans if span.name == "request")
    assert [request.span_id, send.span_id] == [send.parent_id, run.parent_id]
    assert {request.trace_id} == {send.trace_id, run.trace_id}
    assert run.attributes.pop("job.wait.duration") < 5
    assert run.attributes == {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "jobs",
        "messaging.message.id": send.attributes["job.id"],
        "job.name": "app.succeed",
        "job.id": send.attributes["job.id"],
        "job.attempt": 1,
        "job.trigger": "api",
        "job.outcome": "success",
    }
    # All of Redis that is heard: the job's own command and its callback's, none of RQ's, neither here nor in the producer.
    commands = [span for span in sink.spans if "db.system.name" in span.attributes or "db.system" in span.attributes]
    assert [(span.name, span.parent_id) for span in commands] == [("SET", run.span_id)] * 2


def test_an_idle_worker_and_its_scheduler_make_no_spans(bench: Bench, sink: OtlpSink) -> None:
    bench.start("with_scheduler=True, worker={'worker_ttl': 17}")  # it waits for two seconds at a time
    bench.publish("queue.enqueue_in(timedelta(seconds=1), slow, 0)")
    bench.within(30, lambda: bench.runs("app.slow"))
    before = len([p for p in sink.points if p.name == "job.worker.slots"])
    bench.within(20, lambda: len([p for p in sink.points if p.name == "job.worker.slots"]) > before + 8)
    assert {span.name for span in sink.spans} == {"send jobs", "process jobs"}
    bench.process.terminate()
    assert bench.process.wait(20) == 0, bench.output()
    assert {span.name for span in sink.spans} == {"send jobs", "process jobs"}


def test_every_way_to_publish_is_seen(bench: Bench, sink: OtlpSink) -> None:
    bench.start("with_scheduler=True")
    bench.publish("""
meta = {"mine": 1}
queue.enqueue("app.slow", 0, meta=meta)
queue.enqueue_call(slow, args=(0,), meta=meta)
queue.enqueue_at(datetime.now(timezone.utc), slow, 0, meta=meta)
queue.enqueue_in(timedelta(seconds=0), slow, 0, meta=meta)
queue.enqueue_many([Queue.prepare_data(slow, (0,), meta=meta), Queue.prepare_data(slow, (0,), meta=meta)])
Group.create(connection=connection).enqueue_many(queue, [Queue.prepare_data(slow, (0,), meta=meta)])
queue.enqueue(Account().close)
assert meta == {"mine": 1}, meta
with connection.pipeline() as pipeline:
    queue.enqueue(slow, 0, pipeline=pipeline)
    pipeline.execute()
""")
    bench.within(40, lambda: bench.executions().get(("app.slow", "success")) == 8 and len(bench.runs("app.slow")) == 8)
    sends, runs = {span.span_id: span for span in bench.sends("app.slow")}, bench.runs("app.slow")
    assert len(sends) == 8
    children = [run for run in runs if run.parent_id]
    assert len(children) == 3, "enqueue twice and enqueue_call"
    assert {run.parent_id for run in children} <= set(sends)
    # What was put off on purpose, and what is one of many, is linked.
    for run in (run for run in runs if not run.parent_id):
        assert [span_id for _trace, span_id in run.links if span_id in sends]
    assert [span.attributes["job.outcome"] for span in bench.runs("app.Account.close")] == ["success"]


@pytest.mark.parametrize(
    "call",
    [
        "queue.enqueue(slow, 0)",
        "queue.enqueue_call(slow, (0,))",
        "queue.enqueue_in(timedelta(seconds=1), slow, 0)",
        "queue.enqueue_many([Queue.prepare_data(slow, (0,))])",
        "Group.create(connection=connection).enqueue_many(queue, [Queue.prepare_data(slow, (0,))])",
        "CronJob('jobs', slow, args=(0,), interval=1).enqueue(connection)",
    ],
)
def test_a_publish_to_a_dead_redis_ends_with_an_error_and_leaves_no_context(
    bench: Bench, sink: OtlpSink, call: str
) -> None:
    said = bench.publish(
        f"""
from opentelemetry import context
before = context.get_current()
try:
    {call}
except Exception as error:
    print(type(error).__name__, context.get_current() == before)
""",
        BROKER=f"redis://127.0.0.1:{free_port()}/0",
    )
    assert said.strip() == "ConnectionError True"
    (send,) = bench.sends("app.slow")
    assert (send.status, send.attributes["error.type"]) == ("ERROR", "redis.exceptions.ConnectionError")
    assert bench.events("app.slow") == []


def test_a_publish_that_rq_refuses_is_an_error_of_that_publish(bench: Bench) -> None:
    bench.publish("""
from rq.exceptions import DuplicateJobError
queue.enqueue(slow, 0, job_id="once", unique=True)
for refused in (DuplicateJobError, ValueError):
    try:
        queue.enqueue(slow, 0, job_id="once" if refused is DuplicateJobError else None, unique=True)
    except refused:
        print("refused")
""")
    first, second = bench.sends("app.slow")
    assert [first.status, second.status] == ["UNSET", "ERROR"]
    assert second.attributes["error.type"] == "rq.exceptions.DuplicateJobError"


def test_a_retry_with_an_interval_waits_from_its_due_time_and_links_the_attempt_before(bench: Bench) -> None:
    bench.start("with_scheduler=True")
    bench.publish("queue.enqueue(fail, retry=Retry(max=2, interval=[1, 0]))")
    bench.within(40, lambda: len(bench.runs("app.fail")) == 3)
    first, second, third = bench.runs("app.fail")
    sends = bench.sends("app.fail")
    assert [run.attributes["job.attempt"] for run in (first, second, third)] == [1, 2, 3]
    assert [run.attributes["job.outcome"] for run in (first, second, third)] == ["retry", "retry", "failure"]
    assert [run.status for run in (first, second, third)] == ["UNSET", "UNSET", "ERROR"]
    assert [run.attributes["job.trigger"] for run in (first, second, third)] == ["manual", "retry", "retry"]
    assert second.links == [(first.trace_id, sends[1].span_id), (first.trace_id, first.span_id)]
    assert third.links == [(second.trace_id, sends[2].span_id), (second.trace_id, second.span_id)]
    assert sends[1].parent_id == first.span_id
    due = sends[1].start + sends[1].attributes["job.delay"]
    assert second.attributes["job.wait.duration"] == pytest.approx(max(0.0, second.start - due), abs=0.05)
    assert sends[1].attributes["job.delay"] == pytest.approx(1, abs=0.2)
    bench.within(10, lambda: bench.executions() == {("app.fail", "retry"): 2, ("app.fail", "failure"): 1})


def test_a_job_that_returns_retry_is_run_again_until_that_has_had_enough(bench: Bench) -> None:
    bench.start("SimpleWorker")
    bench.publish("queue.enqueue(ask_for_retry, 2)")
    bench.within(20, lambda: len(bench.runs("app.ask_for_retry")) == 3)
    runs = bench.runs("app.ask_for_retry")
    assert [run.attributes["job.outcome"] for run in runs] == ["retry", "retry", "failure"]
    assert [run.attributes["job.attempt"] for run in runs] == [1, 2, 3]
    assert "error.type" not in runs[0].attributes
    assert runs[2].attributes["error.type"] == "otel_kit.integrations.rq.faults.RetriesExhaustedError"
    assert (runs[1].trace_id, runs[1].span_id) in runs[2].links
    name = "app.ask_for_retry"
    bench.within(10, lambda: bench.executions() == {(name, "retry"): 2, (name, "failure"): 1})


def test_a_killed_work_horse_is_lost_with_the_ids_it_had_and_its_retry_links_it(bench: Bench) -> None:
    bench.start()
    bench.publish("queue.enqueue(die_once, retry=Retry(max=1))")
    bench.within(30, lambda: len(bench.runs("app.die_once")) == 2)
    lost, again = bench.runs("app.die_once")
    assert (lost.attributes["job.outcome"], lost.status) == ("lost", "ERROR")
    assert lost.attributes["error.type"] == "otel_kit.jobs.leases.WorkerLost"
    assert lost.attributes["job.error.category"] == "resource"
    assert lost.status_message == "the work horse was killed by signal 9"
    assert 0.6 < lost.end - lost.start < 10
    events = {record.event_name: record for record in bench.events("app.die_once") if record.span_id == lost.span_id}
    assert {"job.started", "job.lost"} <= set(events), (
        "the horse's own event has the ids of the span that its worker made"
    )
    assert again.attributes["job.attempt"] == 2
    assert (lost.trace_id, lost.span_id) in again.links
    name = "app.die_once"
    bench.within(10, lambda: bench.executions() == {(name, "lost"): 1, (name, "success"): 1})


def test_a_job_that_is_stopped_is_revoked(bench: Bench) -> None:
    bench.start()
    bench.publish("queue.enqueue(slow, 60, job_id='long')")
    bench.within(20, lambda: [r.event_name for r in bench.events("app.slow")] == ["job.created", "job.started"])
    bench.publish("send_stop_job_command(connection, 'long')")
    bench.within(20, lambda: bench.executions() == {("app.slow", "revoked"): 1} and bench.runs("app.slow"))
    (run,) = bench.runs("app.slow")
    assert (run.attributes["job.outcome"], run.status) == ("revoked", "UNSET")
    assert run.attributes["error.type"] == "otel_kit.integrations.rq.faults.JobStoppedError"
    assert [r.event_name for r in bench.events("app.slow")][-1] == "job.revoked"


@pytest.mark.parametrize("kind", ["Worker", "SimpleWorker"])
def test_a_timeout_is_a_failure_of_that_category_and_the_limit_is_known(bench: Bench, kind: str) -> None:
    bench.start(kind)
    bench.publish("queue.enqueue(slow, 60, job_timeout=1)")
    bench.within(20, lambda: bench.executions() == {("app.slow", "failure"): 1} and bench.runs("app.slow"))
    (run,) = bench.runs("app.slow")
    assert run.attributes["error.type"] == "rq.timeouts.JobTimeoutException"
    assert run.attributes["job.error.category"] == "timeout"
    assert bench.last("job.max_runtime", job__name="app.slow") == 1
    assert bench.last("job.errors", job__error__category="timeout") == 1


def test_failures_show_what_was_raised_and_not_what_the_job_was_given(bench: Bench, sink: OtlpSink) -> None:
    bench.start("worker={'log_job_description': False}")
    bench.publish("""
queue.enqueue(fail, "correct horse", note="battery staple", description="a job")
queue.enqueue(fail_as_expected)
queue.enqueue(unpicklable)
queue.enqueue("no.such.function")
""")
    bench.within(30, lambda: len(bench.executions()) == 4 and len(bench.runs("no.such.function")) == 1)
    failed, expected = bench.runs("app.fail")[0], bench.runs("expected")[0]
    unkept, unknown = bench.runs("app.unpicklable")[0], bench.runs("no.such.function")[0]
    outcomes = [run.attributes["job.outcome"] for run in (failed, expected, unkept, unknown)]
    assert outcomes == ["failure", "failure", "success", "failure"]
    assert [run.status for run in (failed, expected, unknown)] == ["ERROR", "UNSET", "ERROR"]
    assert failed.attributes["error.type"] == "ZeroDivisionError"
    assert unknown.attributes["error.type"] == "ValueError"
    said = repr(sink.logs) + repr(sink.spans)
    assert "correct horse" not in said
    assert "battery staple" not in said
    (logged,) = [record for record in sink.logs if "exception raised while executing (app.fail)" in record.body]
    assert (logged.trace_id, logged.span_id) == (failed.trace_id, failed.span_id)


def test_a_job_that_waits_for_another_waits_from_the_moment_that_it_is_ready(bench: Bench) -> None:
    bench.start()
    bench.publish("first = queue.enqueue(slow, 1.5); queue.enqueue(succeed, depends_on=first)")
    bench.within(30, lambda: bench.runs("app.succeed") and bench.runs("app.slow"))
    (first,), (second,) = bench.runs("app.slow"), bench.runs("app.succeed")
    assert second.start - bench.sends("app.succeed")[0].start > 1.4
    assert second.attributes["job.wait.duration"] < second.start - first.end + 0.3
    assert len(bench.sends("app.succeed")) == 1, "that RQ moves it on is no publish"
    assert second.parent_id == bench.sends("app.succeed")[0].span_id


def test_what_waited_for_a_job_that_gave_up_is_no_retry(bench: Bench) -> None:
    bench.start("SimpleWorker")
    bench.publish("""
from rq.job import Dependency
first = queue.enqueue(ask_for_retry, 1)
queue.enqueue(succeed, depends_on=Dependency(first, allow_failure=True))
""")
    bench.within(20, lambda: bench.runs("app.succeed"))
    (run,), (send,) = bench.runs("app.succeed"), bench.sends("app.succeed")
    assert (run.attributes["job.attempt"], run.attributes["job.trigger"]) == (1, "manual")
    assert run.parent_id == send.span_id


def test_a_job_that_repeats_itself_is_one_short_trace_each(bench: Bench) -> None:
    bench.start()
    bench.publish("queue.enqueue(slow, 0, repeat=Repeat(times=2))")
    bench.within(20, lambda: len(bench.runs("app.slow")) == 3)
    runs, sends = bench.runs("app.slow"), bench.sends("app.slow")
    assert [run.attributes["job.trigger"] for run in runs] == ["manual", "schedule", "schedule"]
    assert [run.attributes["job.attempt"] for run in runs] == [1, 1, 1]
    assert len({run.trace_id for run in runs}) == 3
    assert (runs[0].trace_id, sends[1].span_id) in runs[1].links


def test_a_requeued_job_is_the_next_attempt_and_its_own_meta_stays(bench: Bench) -> None:
    bench.start("SimpleWorker")
    bench.publish("queue.enqueue(fail, job_id='again', meta={'mine': 1})")
    bench.within(20, lambda: bench.runs("app.fail"))
    bench.publish("FailedJobRegistry(queue=queue).requeue('again')")
    bench.within(20, lambda: len(bench.runs("app.fail")) == 2)
    first, second = bench.runs("app.fail")
    assert [first.attributes["job.attempt"], second.attributes["job.attempt"]] == [1, 2]
    assert second.parent_id == ""
    assert first.trace_id in {trace_id for trace_id, _span in second.links}
    assert second.attributes["job.wait.duration"] < second.start - first.end
    with bench.redis() as client:
        assert pickle.loads(client.hget("rq:job:again", "meta"))["mine"] == 1


def test_a_job_that_is_requeued_without_the_kit_is_the_next_attempt_and_waits_from_then_on(bench: Bench) -> None:
    bench.start("SimpleWorker, with_scheduler=True")
    bench.publish("queue.enqueue_in(timedelta(seconds=0), fail, job_id='again')")
    bench.within(20, lambda: bench.runs("app.fail"))
    plain = "import redis, sys; from rq import Queue; from rq.registry import FailedJobRegistry as R\n"
    plain += f"R('jobs', connection=redis.Redis.from_url({bench.broker!r})).requeue('again')"
    time.sleep(max(0.0, bench.runs("app.fail")[0].start + 2 - time.time()))
    assert bench.programs.run(plain).returncode == 0
    bench.within(20, lambda: len(bench.runs("app.fail")) == 2)
    first, second = bench.runs("app.fail")
    assert [first.attributes["job.attempt"], second.attributes["job.attempt"]] == [1, 2]
    assert second.attributes["job.wait.duration"] < 1.5


def test_jobs_that_never_run_are_told_apart(bench: Bench) -> None:
    bench.publish("queue.enqueue(slow, 0, job_id='cancelled').cancel()")
    bench.publish("queue.enqueue(slow, 0, ttl=1)")
    with bench.redis() as client:
        eventually(lambda: len(client.keys("rq:job:*")) == 1)  # the one that was cancelled is kept
    bench.start()
    outcomes = {("app.slow", "revoked"): 1, ("unknown", "expired"): 1}
    bench.within(20, lambda: bench.executions() == outcomes)
    assert [r.event_name for r in bench.events("app.slow")].count("job.revoked") == 1
    assert bench.runs("app.slow") == []


def test_a_job_hash_that_is_none_is_rejected(bench: Bench) -> None:
    with bench.redis() as client:
        client.hset("rq:job:empty", mapping={"origin": "jobs"})
        client.hset("rq:job:timeless", mapping={"data": b"x", "created_at": "yesterday"})
        client.rpush("rq:queue:jobs", "empty", "timeless")
        bench.process = bench.programs.start(
            sys.executable, "-c", "from app import *; work()", BROKER=bench.broker, OTEL_SERVICE_NAME="worker"
        )
        bench.process.wait(30)  # RQ's worker gives up at the second one
    bench.within(10, lambda: bench.executions() == {("unknown", "rejected"): 2})
    assert [r.event_name for r in bench.events("unknown")] == ["job.rejected"] * 2


def test_a_spawned_work_horse_reports_like_a_forked_one(bench: Bench) -> None:
    bench.programs.write("spawning", "from app import *\nclass Spawning(SpawnWorker):\n    pass\n")
    command = "from spawning import *; Spawning(['jobs'], connection=connection).work()"
    bench.process = bench.programs.start(sys.executable, "-c", command, BROKER=bench.broker, OTEL_SERVICE_NAME="worker")
    bench.await_worker()
    bench.publish("queue.enqueue(succeed, 1); queue.enqueue(fail); queue.enqueue(die)")
    counted = {("app.succeed", "success"): 1, ("app.fail", "failure"): 1, ("app.die", "lost"): 1}
    bench.within(60, lambda: bench.executions() == counted)
    bench.within(20, lambda: bench.runs("app.succeed") and bench.runs("app.fail") and bench.runs("app.die"))
    (succeeded,), (died,) = bench.runs("app.succeed"), bench.runs("app.die")
    assert succeeded.parent_id == bench.sends("app.succeed")[0].span_id
    started = [r for r in bench.events("app.die") if r.event_name == "job.started"]
    assert [r.span_id for r in started] == [died.span_id]
    assert bench.last("job.errors", job__name="app.fail", error__type="ZeroDivisionError") == 1


def test_a_queue_that_runs_its_jobs_at_once_is_no_broker(bench: Bench, sink: OtlpSink) -> None:
    bench.publish("""
from opentelemetry import trace
here = Queue("jobs", connection=connection, is_async=False)
with trace.get_tracer("test").start_as_current_span("caller"):
    here.enqueue(succeed, 1)
    here.enqueue(fail)
""")
    (run,), (failed,) = bench.runs("app.succeed"), bench.runs("app.fail")
    caller = next(span for span in sink.spans if span.name == "caller")
    assert (run.kind, run.name, run.parent_id) == ("INTERNAL", "app.succeed", caller.span_id)
    assert (failed.attributes["job.outcome"], failed.parent_id) == ("failure", caller.span_id)
    assert bench.sends("app.succeed") == []
    assert bench.executions() == {("app.succeed", "success"): 1, ("app.fail", "failure"): 1}


@pytest.mark.parametrize(("schedule", "trigger"), [("interval=2", "schedule"), ("cron='* * * * * */2'", "cron")])
def test_rqs_cron_is_known_as_such_and_its_worker_knows_when_the_next_success_is_due(
    bench: Bench, schedule: str, trigger: str
) -> None:
    bench.start()
    code = (
        f"from app import *; s = CronScheduler(connection); s.register(slow, 'jobs', args=(0,), {schedule}); s.start()"
    )
    cron = bench.programs.start(sys.executable, "-c", code, BROKER=bench.broker, OTEL_SERVICE_NAME="cron")
    bench.within(40, lambda: len(bench.runs("app.slow")) >= 2)
    assert {run.attributes["job.trigger"] for run in bench.runs("app.slow")} == {trigger}
    assert {span.name for span in bench.sink.spans} == {"send jobs", "process jobs"}
    bench.within(10, lambda: bench.last("job.deadline.time", job__name="app.slow"))
    assert bench.programs.stop(cron) == 0
    due = bench.last("job.deadline.time", job__name="app.slow") or 0
    # The next run is within two seconds; a run may take RQ's 180 s, and a minute is left to it.
    assert 220 < due - time.time() < 260


def test_a_worker_that_is_killed_with_its_horse_loses_its_job_once(bench: Bench, sink: OtlpSink) -> None:
    bench.start(OTEL_KIT_LEASES="off")
    bench.publish("queue.enqueue(slow, 60)", OTEL_KIT_LEASES="off")
    bench.within(20, lambda: "job.started" in [r.event_name for r in bench.events("app.slow")])
    with bench.redis() as client:
        (started,) = client.zrange("rq:wip:jobs", 0, -1)
        assert started
    horses = _children(bench.process.pid)
    os.kill(bench.process.pid, signal.SIGKILL)
    for pid in horses:
        os.kill(pid, signal.SIGKILL)
    clean = """
StartedJobRegistry(queue=queue).cleanup(timestamp=int(time.time()) + 1000)
time.sleep(1.5)
"""
    bench.publish(clean, OTEL_KIT_LEASES="off", OTEL_SERVICE_NAME="cleaner")
    bench.publish(clean, OTEL_KIT_LEASES="off", OTEL_SERVICE_NAME="cleaner")
    assert bench.executions() == {("app.slow", "lost"): 1}
    (lost,) = bench.runs("app.slow")
    assert lost.attributes["error.type"] == "otel_kit.jobs.leases.WorkerLost"
    assert lost.attributes["job.attempt"] == 1


def test_what_has_a_lease_is_not_lost_twice(bench: Bench, sink: OtlpSink) -> None:
    short = {"OTEL_KIT_LEASE_TTL": "2"}
    bench.start(**short)
    first = bench.process
    bench.publish("queue.enqueue(slow, 60)")
    with bench.redis() as client:
        eventually(lambda: client.zcard("otel-kit:{leases}:live") == 1, 20)
        horses = _children(first.pid)
        os.kill(first.pid, signal.SIGKILL)
        for pid in horses:
            os.kill(pid, signal.SIGKILL)
        bench.publish("StartedJobRegistry(queue=queue).cleanup(timestamp=int(time.time()) + 1000); time.sleep(1.5)")
        assert bench.executions() == {}, "the lease is there, and somebody will come for it"
        bench.start(**short)
        bench.within(40, lambda: bench.executions() == {("app.slow", "lost"): 1})
        bench.publish("StartedJobRegistry(queue=queue).cleanup(timestamp=int(time.time()) + 1000); time.sleep(1.5)")
    assert bench.executions() == {("app.slow", "lost"): 1}


def test_a_worker_that_is_told_twice_to_go_loses_its_job_once(bench: Bench) -> None:
    bench.start()
    bench.publish("queue.enqueue(slow, 60)")
    bench.within(20, lambda: "job.started" in [r.event_name for r in bench.events("app.slow")])
    bench.process.send_signal(signal.SIGINT)
    eventually(lambda: "warm shut down" in bench.output())
    time.sleep(1.2)  # RQ takes a second signal within a second for the first
    bench.process.send_signal(signal.SIGINT)
    bench.process.wait(30)
    bench.within(10, lambda: bench.executions() == {("app.slow", "lost"): 1} and bench.runs("app.slow"))
    bench.publish("StartedJobRegistry(queue=queue).cleanup(timestamp=int(time.time()) + 1000); time.sleep(1.5)")
    assert bench.executions() == {("app.slow", "lost"): 1}
    assert len(bench.runs("app.slow")) == 1


def test_a_horse_whose_worker_has_died_counts_its_run_itself(bench: Bench) -> None:
    bench.start(OTEL_KIT_LEASES="off")
    bench.publish("queue.enqueue(slow, 8)", OTEL_KIT_LEASES="off")
    bench.within(20, lambda: "job.started" in [r.event_name for r in bench.events("app.slow")])
    (horse,) = _children(bench.process.pid)
    os.kill(bench.process.pid, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{horse}").exists(), 30)
    bench.start(OTEL_KIT_LEASES="off")  # which sends what a busy machine left the horse no time for
    bench.within(20, lambda: bench.executions() == {("app.slow", "success"): 1} and bench.runs("app.slow"))


def test_the_queues_state_is_read_without_changing_it(bench: Bench) -> None:
    bench.publish("""
first = queue.enqueue(slow, 30)
queue.enqueue(slow, 0)
queue.enqueue(slow, 0, depends_on=first)
queue.enqueue_in(timedelta(hours=1), slow, 0)
""")
    (source,) = from_url(bench.broker, ["jobs"])
    state = source.read()
    assert (state.ready, state.scheduled, state.reserved, state.dead) == (2, 2, 0, 0)
    assert state.oldest_ready_at == pytest.approx(bench.sends("app.slow")[0].start, abs=1)
    bench.start()
    with bench.redis() as client:
        eventually(lambda: client.zcard("rq:wip:jobs") == source.read().reserved == 1, 20)
        (entry,) = client.zrange("rq:wip:jobs", 0, -1)
        client.zadd("rq:wip:jobs", {entry: 1})  # long abandoned: asking RQ for its count would now fail the job
        client.zadd("rq:failed:jobs", {"x": time.time() + 100})
        before = {key: client.dump(key) for key in client.keys("rq:*")}
        assert (source.read().reserved, source.read().dead) == (1, 1)
        assert client.zscore("rq:wip:jobs", entry) == 1
        assert set(before) == set(client.keys("rq:*"))


def test_the_worker_tells_how_busy_it_is_and_that_it_moves(bench: Bench) -> None:
    bench.start("queues=('jobs', 'others')")
    labels = {"messaging__destination__name": "jobs,others"}
    bench.within(10, lambda: bench.last("job.worker.slots", **labels) == 1)
    bench.publish("queue.enqueue(slow, 3)")
    seen = [1.0, "busy"]
    bench.within(20, lambda: seen in [[p.value, p.attributes.get("job.worker.state")] for p in list(bench.sink.points)])
    bench.within(20, lambda: bench.last("job.worker.count", job__worker__state="busy", **labels) == 0)
    assert bench.last("job.worker.heartbeat.time", source="loop") == pytest.approx(time.time(), abs=5)


def test_uninstrumenting_gives_rq_back_as_it_was(bench: Bench) -> None:
    said = bench.publish("""
from otel_kit.integrations.rq import RQInstrumentor, _WRAPPERS
import rq.worker, rq.queue, rq.job, importlib, wrapt
def wrapped():
    found = 0
    for name in ("rq.queue", "rq.job", "rq.worker", "rq.registry", "rq.cron", "rq.group", "rq.repeat"):
        module = importlib.import_module(name)
        for owner in [module, *[each for each in vars(module).values() if isinstance(each, type)]]:
            if not str(getattr(owner, '__module__', 'rq')).startswith('rq'):
                continue
            found += sum(isinstance(each, wrapt.FunctionWrapper) for each in vars(owner).values())
    return found
assert wrapped() > 20
RQInstrumentor().uninstrument()
assert wrapped() == 0
queue.enqueue(slow, 0)
RQInstrumentor().instrument()
assert wrapped() > 20
queue.enqueue(slow, 0)
""")
    assert said == ""
    assert len(bench.sends("app.slow")) == 1


def test_the_workers_main_process_unpickles_nothing_of_a_job(bench: Bench) -> None:
    bench.programs.write("trap", "import os\nprint('unpickled in', os.getpid(), flush=True)\nclass Argument: pass\n")
    bench.start()
    bench.publish("import trap; queue.enqueue(succeed, trap.Argument())")
    bench.within(20, lambda: bench.runs("app.succeed"))
    assert f"unpickled in {bench.process.pid}" not in bench.output()
    assert "unpickled in" in bench.output()


# Without a broker


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_name_is_found_in_a_pickle_that_is_not_loaded(protocol: int) -> None:
    data = pickle.dumps(("app.billing.charge", None, ("x" * 100_000,), {}), protocol)
    assert messages.name_of(SimpleNamespace(meta={}, _data=data)) == "app.billing.charge"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (json.dumps(["app.charge", None, [1], {}]).encode(), "app.charge"),
        (b'["', "unknown"),
        (b"[1, 2]", "unknown"),
        (b"", "unknown"),
        (b"\x80\x05garbage", "unknown"),
        (pickle.dumps((1, 2, 3)), "unknown"),
        (pickle.dumps(("n" * 1000, None, (), {})), "unknown"),
    ],
)
def test_a_name_that_is_none_is_unknown(data: bytes, name: str) -> None:
    assert messages.name_of(SimpleNamespace(meta={}, _data=data)) == name


@pytest.mark.parametrize(
    "meta",
    [
        None,
        [],
        {"otel-kit": 7},
        {"otel-kit": {"otel-kit-attempt": "x", "otel-kit-start-at": "nan", "otel-kit-name": ""}},
    ],
)
def test_headers_may_be_anything(meta: Any) -> None:
    job = SimpleNamespace(
        meta=meta, _data=b"", id="1", origin="q", number_of_retries=None, enqueued_at=None, timeout=5, started_at=None,
        worker_name=None,
    )  # fmt: skip
    made = messages.job_of(job)
    assert (made.name, made.attempt, made.ready_at, made.max_runtime) == ("unknown", 1, None, 5.0)


@pytest.mark.parametrize("schedule", ["", "nan", "-1", "0", "1e99", "* * *", "x" * 1000, "61 * * * *"])
def test_a_schedule_that_is_none_is_passed_over(schedule: str) -> None:
    assert schedules._schedule(schedule) is None


def test_a_report_goes_through_a_pipe_with_the_errors_name_and_category() -> None:
    class RefusedError(ConnectionRefusedError):
        def __init__(self) -> None:
            raise AssertionError("nobody makes one of these again")

    line = Line.open()
    assert line.receive() is None
    line.send(Report(Outcome.FAILURE, 1.5, RefusedError.__new__(RefusedError)))
    found = line.receive()
    assert found is not None
    assert (found.outcome, found.duration) == (Outcome.FAILURE, 1.5)
    assert found.error is not None
    assert errors.type_name(found.error) == f"{__name__}.{RefusedError.__qualname__}"
    assert errors.category(found.error) == "network"
    assert line.receive() is None
    line.close()
    assert Report.decode(b"half a rep") is None


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_example_goes_from_the_order_to_the_poster(bench: Bench, sink: OtlpSink) -> None:
    example = Path(__file__).parents[2] / "examples" / "rq"
    url = {"REDIS_URL": bench.broker, "PYTHONPATH": str(example)}
    environment = bench.programs.environment(**url)
    command = [str(BIN / "rq"), "worker", "-c", "worker", "--with-scheduler"]
    bench.process = bench.programs.start(*command, **url)
    bench.await_worker()
    ran = subprocess.run([sys.executable, "shop.py", "3"], cwd=example, env=environment, timeout=60, check=False)
    assert ran.returncode == 0
    bench.programs.start(str(BIN / "rq"), "cron", "-u", bench.broker, "timetable", **url)

    def printed() -> bool:
        counted = bench.executions()
        return counted.get(("jobs.print_poster", "success")) == 4 and ("jobs.clean_rollers", "success") in counted

    bench.within(60, printed)
    orders = {span.span_id: span for span in sink.spans if span.name == "order"}
    sends = {span.span_id: span for span in bench.sends("jobs.print_poster")}
    first = [run for run in bench.runs("jobs.print_poster") if run.attributes["job.attempt"] == 1 and run.parent_id]
    assert len(first) == len(orders) == 3
    for run in first:
        order = orders[sends[run.parent_id].parent_id]
        assert (order.service, run.service, order.trace_id) == ("shop", "press", run.trace_id)


def test_runs_are_counted_where_the_spawned_horse_has_no_kit(bench: Bench) -> None:
    bench.programs.write("plain", "def succeed(): pass\ndef fail(): 1 / 0\n")
    bench.start("SpawnWorker")
    bench.publish(
        "queue.enqueue('plain.succeed'); queue.enqueue('plain.fail'); queue.enqueue('plain.succeed', result_ttl=0)"
    )
    bench.within(60, lambda: bench.executions() == {("plain.succeed", "success"): 2, ("plain.fail", "failure"): 1})


def test_a_job_that_ends_its_process_is_lost_once(bench: Bench) -> None:
    bench.start()
    bench.publish("queue.enqueue(os._exit, 0); queue.enqueue(os._exit, 7)")
    bench.within(30, lambda: bench.executions() == {("posix._exit", "lost"): 2} and len(bench.runs("posix._exit")) == 2)
    said = {run.status_message for run in bench.runs("posix._exit")}
    assert said == {f"the work horse exited with status {status} in the middle of the job" for status in (0, 7)}
    bench.publish("StartedJobRegistry(queue=queue).cleanup(timestamp=int(time.time()) + 1000); time.sleep(1.5)")
    assert bench.executions() == {("posix._exit", "lost"): 2}


def test_rq_still_has_what_is_wrapped_and_looked_at() -> None:
    import importlib

    import rq
    from rq.job import Job

    from otel_kit.integrations.rq import _WRAPPERS

    missing = set()
    for name, wrappers in _WRAPPERS.items():
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            missing.add(name)
            continue
        for path, _wrapper in wrappers:
            found: Any = module
            for each in path.split("."):
                found = vars(found).get(each)
                if found is None:
                    missing.add(f"{name}.{path}")
                    break
    of_rq_2 = {f"rq.job.Job.execute_{kind}_callback" for kind in ("success", "failure", "stopped")}
    of_rq_3 = {"rq.worker.base", "rq.worker.worker_classes", "rq.queue.Queue._enqueue_rate_limited_job"} | {
        f"{module}.execute_{kind}_callback" for module in ("rq.queue", "rq.registry") for kind in ("success", "failure")
    }
    known = of_rq_2 if rq.__version__.startswith("3.") else of_rq_3 - {"rq.registry.execute_success_callback"}
    assert missing == known
    job = Job.create("app.slow", connection=redis.Redis())
    assert {"_id", "_func_name", "_instance", "_data", "_status"} <= set(vars(job))
