"""Dramatiq with real Redis and real workers: what a job leaves behind."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import redis

from otel_kit.integrations.dramatiq.queues import from_url, ready_at
from otel_kit.jobs.queues import QueueState
from otel_kit.testing import MetricPoint, OtlpSink, Span
from tests.integration.conftest import BIN, Programs, eventually, free_port

APP = """
import asyncio, logging, os, signal, sys, time
import otel_kit
otel_kit.configure(os.environ.get("OTEL_SERVICE_NAME", "worker"))
import dramatiq
import redis
from dramatiq import group, pipeline
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, CurrentMessage, SkipMessage, TimeLimit

broker = RedisBroker(url=os.environ["BROKER"], heartbeat_timeout=3000, maintenance_chance=1_000_000)
broker.middleware = [m for m in broker.middleware if type(m).__name__ != "Prometheus"]
next(m for m in broker.middleware if isinstance(m, TimeLimit)).manager.interval = 0.1
broker.add_middleware(AsyncIO())
dramatiq.set_broker(broker)
cache = redis.Redis.from_url(os.environ["BROKER"])

@dramatiq.actor(actor_name="succeed", time_limit=60_000)
def succeed(number=0):
    logging.getLogger("plain").warning("plain logger %s", number)
    cache.set("number", number)

@dramatiq.actor(max_retries=0)
def fail():
    raise ZeroDivisionError("on purpose")

class Expected(Exception):
    pass

@dramatiq.actor(throws=(Expected,))
def fail_as_expected():
    raise Expected("may happen")

@dramatiq.actor(max_retries=1, min_backoff=100)
def retry_once():
    if CurrentMessage.get_current_message().options.get("retries", 0) == 0:
        raise ConnectionError("not yet")

broker.add_middleware(CurrentMessage())

@dramatiq.actor(max_retries=0)
def unlucky():
    raise ConnectionError("the only chance")

@dramatiq.actor(time_limit=300, max_retries=0)
def too_long():
    for _ in range(200):
        time.sleep(0.05)

# Due after the end: a worker that shuts down runs what becomes due in its last second.
@dramatiq.actor(notify_shutdown=True, max_retries=3, min_backoff=2000, max_backoff=2500)
def interrupted():
    for _ in range(600):
        time.sleep(0.05)

@dramatiq.actor
def slow(seconds):
    time.sleep(seconds)

@dramatiq.actor
def die_once():
    if cache.set("died", 1, nx=True):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

@dramatiq.actor
def parent():
    succeed.send(7)

@dramatiq.actor
async def asynchronous():
    await asyncio.sleep(0.01)
    logging.getLogger("plain").warning("in the loop")
    succeed.send(8)

@dramatiq.actor
def double(number):
    return 2 * number

@dramatiq.actor(max_age=50)
def perishable():
    pass

@dramatiq.actor
def declines():
    raise SkipMessage("not today")
"""


class Worker:
    """A worker under test and what publishes to it."""

    def __init__(self, programs: Programs, sink: OtlpSink, url: str) -> None:
        self.programs, self.sink, self.url = programs, sink, url
        programs.write("jobs", APP)

    def start(
        self,
        *options: str,
        processes: int = 1,
        threads: int = 2,
        program: str = "dramatiq",
        before: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        command = (
            *before,
            str(BIN / program),
            "jobs",
            "--path",
            ".",
            "--processes",
            str(processes),
            "--threads",
            str(threads),
        )
        environment = {"dramatiq_restart_delay": "100", **environment}
        self.process = self.programs.start(*command, *options, BROKER=self.url, **environment)
        eventually(lambda: self.output.count("Worker process is ready") == processes, 90)

    @property
    def output(self) -> str:
        return self.programs.output(self.process)

    def publish(self, code: str, **environment: str) -> str:
        ran = self.programs.run(
            f"from jobs import *\n{code}", BROKER=self.url, **{"OTEL_SERVICE_NAME": "producer", **environment}
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def stop(self) -> None:
        assert self.programs.stop(self.process, 30) == 0, self.output

    def runs(self, name: str) -> list[Span]:
        runs = [span for span in self.sink.spans if span.kind == "CONSUMER" and span.attributes["job.name"] == name]
        return sorted(runs, key=lambda span: span.start)

    def sends(self, name: str) -> list[Span]:
        sends = [span for span in self.sink.spans if span.kind == "PRODUCER" and span.attributes["job.name"] == name]
        return sorted(sends, key=lambda span: span.start)

    def executions(self) -> dict[tuple[str, str], float]:
        """Runs by name and outcome, summed over processes, zeros left out."""
        return total(self.sink, "job.executions", "job.name", "job.outcome")

    def events(self) -> list[str]:
        """The events of all jobs, in order of time."""
        return [r.event_name for r in sorted(self.sink.logs, key=lambda record: record.time) if r.event_name]


def latest(sink: OtlpSink, name: str, *labels: str) -> dict[tuple[str, ...], MetricPoint]:
    """The last point of each process and combination of labels."""
    found: dict[tuple[str, ...], MetricPoint] = {}
    for point in sorted((p for p in sink.points if p.name == name), key=lambda point: point.time):
        key = (point.resource["service.instance.id"], *(str(point.attributes[label]) for label in labels))
        found[key] = point
    return found


def total(sink: OtlpSink, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """A counter's or gauge's last values, summed over processes, zeros left out."""
    summed: Counter[tuple[str, ...]] = Counter()
    for (_instance, *key), point in latest(sink, name, *labels).items():
        summed[tuple(key)] += int(point.value)
    return {key: value for key, value in summed.items() if value}


@pytest.fixture
def worker(programs: Programs, sink: OtlpSink, redis_url: str) -> Worker:
    return Worker(programs, sink, redis_url)


@pytest.mark.parametrize(
    ("program", "options"),
    [("dramatiq", ()), ("dramatiq", ("--use-spawn",)), ("dramatiq-gevent", ())],
    ids=["fork", "spawn", "gevent"],
)
def test_a_job_is_one_trace_with_its_logs_and_is_counted_once(
    worker: Worker, sink: OtlpSink, program: str, options: tuple[str, ...]
) -> None:
    worker.start(*options, processes=2, program=program)
    worker.publish("""
from opentelemetry import trace
with trace.get_tracer("test").start_as_current_span("request", kind=trace.SpanKind.SERVER):
    succeed.send(5)
""")
    sink.wait_for(lambda _: worker.runs("succeed"))
    worker.stop()

    request, send, run, command = (
        next(span for span in sink.spans if span.name == name)
        for name in ("request", "send default", "process default", "SET")
    )
    assert {span.trace_id for span in (request, send, run, command)} == {request.trace_id}
    assert [send.parent_id, run.parent_id, command.parent_id] == [request.span_id, send.span_id, run.span_id]
    assert (send.kind, run.kind) == ("PRODUCER", "CONSUMER")
    assert (send.service, run.service) == ("producer", "worker")
    job_id = run.attributes["job.id"]
    assert send.attributes == {
        "messaging.system": "redis",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "default",
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
        "messaging.destination.name": "default",
        "messaging.message.id": job_id,
        "job.name": "succeed",
        "job.id": job_id,
        "job.attempt": 1,
        "job.trigger": "api",
        "job.outcome": "success",
    }
    [logged] = [record for record in sink.logs if record.body == "plain logger 5"]
    assert (logged.trace_id, logged.span_id) == (run.trace_id, run.span_id)
    assert (logged.attributes["job.id"], logged.attributes["job.name"]) == (job_id, "succeed")
    assert worker.events() == ["job.created", "job.started", "job.completed"]
    assert worker.executions() == {("succeed", "success"): 1}
    assert total(sink, "messaging.client.consumed.messages") == {(): 1}
    assert total(sink, "job.active", "job.name") == {}
    [limit] = {p.value for p in sink.points if p.name == "job.max_runtime" and p.attributes["job.name"] == "succeed"}
    assert limit == 60


@pytest.mark.parametrize("options", [(), ("--use-spawn",)], ids=["fork", "spawn"])
def test_a_worker_needs_no_line_of_code(
    programs: Programs, worker: Worker, sink: OtlpSink, options: tuple[str, ...]
) -> None:
    bare = APP.replace("otel_kit.configure", "(lambda name: None)").replace("import otel_kit\n", "")
    programs.write("jobs", bare)
    worker.start(*options, processes=2, before=(str(BIN / "otel-kit"), "run", "--"), OTEL_SERVICE_NAME="worker")
    programs.write("jobs", APP)
    worker.publish("for n in range(20): succeed.send(n)")
    sink.wait_for(lambda _: len(worker.runs("succeed")) == 20)
    worker.stop()
    assert worker.executions() == {("succeed", "success"): 20}
    assert len({p.resource["service.instance.id"] for p in sink.points if p.name == "job.worker.slots"}) == 2


def test_a_retry_is_a_trace_of_its_own_linked_to_the_attempt_before(worker: Worker, sink: OtlpSink) -> None:
    worker.start()
    worker.publish("retry_once.send()")
    sink.wait_for(lambda _: len(worker.runs("retry_once")) == 2)
    worker.stop()
    first, second = worker.runs("retry_once")
    _, resend = worker.sends("retry_once")
    assert [span.attributes["job.attempt"] for span in (first, second)] == [1, 2]
    assert first.attributes["job.id"] == second.attributes["job.id"]
    assert [first.attributes["job.outcome"], second.attributes["job.outcome"]] == ["retry", "success"]
    assert first.status == "UNSET", "a retry is no error"
    assert first.attributes["job.error.category"] == "network"
    assert resend.parent_id == first.span_id
    assert second.trace_id != first.trace_id
    assert second.parent_id == ""
    assert second.links == [(first.trace_id, resend.span_id), (first.trace_id, first.span_id)]
    assert second.attributes["job.trigger"] == "retry"
    assert 0.04 <= resend.attributes["job.delay"] <= 0.2
    # It waited from its due time, not from the moment it was sent back.
    due = resend.start + resend.attributes["job.delay"]
    assert second.attributes["job.wait.duration"] == pytest.approx(second.start - due, abs=0.05)
    [retried] = [record for record in sink.logs if record.event_name == "job.retried"]
    assert retried.severity == "WARN"
    assert worker.executions() == {("retry_once", "retry"): 1, ("retry_once", "success"): 1}


def test_a_failure_marks_the_span_unless_the_actor_expects_it(worker: Worker, sink: OtlpSink) -> None:
    worker.start()
    worker.publish("fail.send(); fail_as_expected.send(); too_long.send()")
    for name in ("fail", "fail_as_expected", "too_long"):
        sink.wait_for(lambda _, name=name: worker.runs(name))
    worker.stop()
    [failed], [expected], [overdue] = (worker.runs(name) for name in ("fail", "fail_as_expected", "too_long"))
    assert [span.status for span in (failed, expected, overdue)] == ["ERROR", "UNSET", "ERROR"]
    assert failed.attributes["error.type"] == "ZeroDivisionError"
    assert [name for name, _ in failed.events] == ["exception"]
    assert overdue.attributes["error.type"] == "dramatiq.middleware.time_limit.TimeLimitExceeded"
    assert overdue.attributes["job.error.category"] == "timeout"
    failures = {(name, "failure"): 1 for name in ("fail", "fail_as_expected", "too_long")}
    assert worker.executions() == failures


def test_a_delayed_message_is_one_publish_and_one_run_that_waited_from_its_due_time(
    worker: Worker, sink: OtlpSink
) -> None:
    worker.start()
    worker.publish("succeed.send_with_options(args=(1,), delay=700)")
    sink.wait_for(lambda _: worker.runs("succeed"))
    worker.stop()
    [send], [run] = worker.sends("succeed"), worker.runs("succeed")
    assert send.attributes["job.delay"] == pytest.approx(0.7, abs=0.01)
    due = send.start + send.attributes["job.delay"]
    assert run.start >= due - 0.01
    assert run.attributes["job.wait.duration"] == pytest.approx(run.start - due, abs=0.05)
    # Its trace is not stretched over the delay.
    assert (run.parent_id, run.links) == ("", [(send.trace_id, send.span_id)])
    assert total(sink, "messaging.client.sent.messages") == {(): 1}
    assert total(sink, "messaging.client.consumed.messages") == {(): 1}
    assert worker.events() == ["job.created", "job.started", "job.completed"]


def test_each_step_of_a_pipeline_follows_the_one_before_and_each_of_a_group_its_caller(
    worker: Worker, sink: OtlpSink
) -> None:
    worker.start()
    worker.publish("""
from opentelemetry import trace
with trace.get_tracer("test").start_as_current_span("caller"):
    (double.message(2) | double.message() | succeed.message()).run()
    group([parent.message(), asynchronous.message()]).run()
""")
    sink.wait_for(lambda _: len(worker.runs("succeed")) == 3 and len(worker.runs("double")) == 2)
    worker.stop()
    [caller] = [span for span in sink.spans if span.name == "caller"]
    spans = {span.span_id: span for span in sink.spans}

    def road(span: Span) -> list[str]:
        above = spans.get(span.parent_id)
        return [*(road(above) if above else []), span.attributes.get("job.name", span.name) + f" {span.kind}"]

    roads = sorted(" > ".join(road(run)) for run in worker.runs("succeed"))
    step = "{0} PRODUCER > {0} CONSUMER"
    assert roads == sorted(
        " > ".join(["caller INTERNAL", *(step.format(name) for name in names), step.format("succeed")])
        for names in (["double", "double"], ["parent"], ["asynchronous"])
    )
    assert {span.trace_id for span in worker.runs("succeed")} == {caller.trace_id}
    [logged] = [record for record in sink.logs if record.body == "in the loop"]
    assert logged.span_id == worker.runs("asynchronous")[0].span_id
    assert worker.executions() == {
        ("double", "success"): 2, ("succeed", "success"): 3, ("parent", "success"): 1, ("asynchronous", "success"): 1,
    }  # fmt: skip


def test_a_message_that_is_too_old_is_expired_and_never_runs(worker: Worker, sink: OtlpSink) -> None:
    worker.publish("perishable.send()")
    time.sleep(0.1)
    worker.start()
    worker.publish("declines.send()")
    eventually(lambda: len(worker.executions()) == 2)
    worker.stop()
    assert worker.executions() == {("perishable", "expired"): 1, ("declines", "skipped"): 1}
    assert worker.runs("perishable") == []
    [run] = worker.runs("declines")
    assert (run.status, run.attributes["job.outcome"]) == ("UNSET", "skipped")
    [expired] = [record for record in sink.logs if record.event_name == "job.expired"]
    assert expired.trace_id == worker.sends("perishable")[0].trace_id


def test_what_nobody_can_run_is_rejected(worker: Worker, sink: OtlpSink) -> None:
    worker.start()
    worker.publish("""
broker.enqueue(dramatiq.Message("default", "renamed", (), {}, {}))
broker.do_enqueue("default", "broken", b"no json")
""")
    eventually(lambda: len(worker.executions()) == 2)
    # The consumer recovers from what it could not read.
    worker.publish("succeed.send()")
    sink.wait_for(lambda _: worker.runs("succeed"))
    worker.stop()
    rejected = [record for record in sink.logs if record.event_name == "job.rejected"]
    assert {record.attributes["error.type"] for record in rejected} == {
        "dramatiq.errors.ActorNotFound", "dramatiq.errors.DecodeError",
    }  # fmt: skip
    assert worker.executions() == {
        ("renamed", "rejected"): 1, ("unknown", "rejected"): 1, ("succeed", "success"): 1,
    }  # fmt: skip
    assert worker.runs("renamed") == []


def test_a_run_that_the_shutdown_interrupts_is_retried_by_the_next_worker(worker: Worker, sink: OtlpSink) -> None:
    worker.start()
    worker.publish("interrupted.send()")
    eventually(lambda: "job.started" in worker.events())
    worker.stop()
    [run] = worker.runs("interrupted")
    assert (run.status, run.attributes["job.outcome"]) == ("UNSET", "retry")
    assert run.attributes["error.type"] == "dramatiq.middleware.shutdown.Shutdown"
    worker.start()
    eventually(lambda: worker.events().count("job.started") == 2)
    worker.stop()
    again = worker.runs("interrupted")[1]
    assert again.attributes["job.attempt"] == 2
    assert (run.trace_id, run.span_id) in again.links


def test_a_failed_publish_ends_its_span_with_an_error_and_leaves_no_context_behind(
    worker: Worker, sink: OtlpSink
) -> None:
    worker.url = f"redis://127.0.0.1:{free_port()}/0"
    told = worker.publish("""
from opentelemetry import trace
try:
    succeed.send(1)
except Exception as error:
    print(type(error).__name__, trace.get_current_span().get_span_context().is_valid)
with trace.get_tracer("test").start_as_current_span("next"):
    pass
""")
    assert told == "ConnectionError False\n"
    [send] = worker.sends("succeed")
    [following] = [span for span in sink.spans if span.name == "next"]
    assert (send.name, send.status) == ("send default", "ERROR")
    assert following.parent_id == ""
    assert total(sink, "messaging.client.sent.messages", "error.type") == {("redis.exceptions.ConnectionError",): 1}
    assert not [record for record in sink.logs if record.event_name == "job.created"]


def test_an_idle_worker_makes_no_spans_and_shows_its_slots_and_its_heartbeat(worker: Worker, sink: OtlpSink) -> None:
    worker.start(processes=2, threads=3)
    worker.publish("slow.send(3); succeed.send_with_options(delay=3000)")
    eventually(lambda: total(sink, "job.worker.count", "job.worker.state") == {("busy",): 1, ("available",): 5})
    sink.wait_for(lambda _: worker.runs("succeed") and worker.runs("slow"), 20)
    worker.stop()
    # Seconds of polling, and a message that lay unacknowledged: nothing but the jobs themselves.
    names = sorted(span.name for span in sink.spans if span.service == "worker")
    assert names == ["SET", "process default", "process default"]
    slots = {p.value for p in sink.points if p.name == "job.worker.slots" and p.time < worker.runs("slow")[0].end}
    assert slots == {3}
    assert {p.attributes["messaging.destination.name"] for p in sink.points if p.name == "job.worker.slots"} == {
        "default"
    }
    beats = [p for p in sink.points if p.name == "job.worker.heartbeat.time" and p.attributes["source"] == "loop"]
    assert all(point.time - point.value < 3 for point in beats)
    assert len({point.value for point in beats}) > 3
    busy = latest(sink, "job.worker.busy_time")
    assert sum(point.value for point in busy.values()) == pytest.approx(3, abs=0.5)


def test_zero_counts_of_every_actor_are_there_before_anything_has_run(worker: Worker, sink: OtlpSink) -> None:
    worker.start()
    eventually(lambda: len({p.attributes["job.name"] for p in sink.points if p.name == "job.executions"}) >= 14)
    worker.stop()
    outcomes = {p.attributes["job.outcome"] for p in sink.points if p.name == "job.executions"}
    assert {"success", "failure", "retry", "expired", "rejected", "lost"} <= outcomes
    assert worker.executions() == {}


def test_the_state_of_a_queue_is_read_without_changing_it(worker: Worker, redis_url: str) -> None:
    [source] = from_url(redis_url, ["default"])
    assert source.read() == QueueState(ready=0, scheduled=0, reserved=0, dead=0, oldest_ready_at=None)
    before = time.time()
    worker.publish("""
succeed.send(1); succeed.send(2); succeed.send_with_options(delay=60_000)
consumer = broker.consume("default")
taken = next(consumer)
time.sleep(0.3)
fail.send()
broker.do_fetch("default", 1)
dead = broker.enqueue(fail.message())
broker.do_fetch("default", 2)
broker.do_nack("default", dead.options["redis_message_id"])
succeed.send(3)
""")
    with redis.Redis.from_url(redis_url) as client:
        kept = {key: client.dump(key) for key in client.scan_iter()}
        state = source.read()
        assert {key: client.dump(key) for key in client.scan_iter()} == kept
    assert state.oldest_ready_at is not None
    assert before + 0.3 <= state.oldest_ready_at <= time.time()
    assert (state.ready, state.scheduled, state.reserved, state.dead) == (1, 1, 3, 1)


def test_a_worker_reports_its_queue_once_under_the_queues_own_name(worker: Worker, sink: OtlpSink) -> None:
    worker.start(processes=2, threads=1)
    worker.publish("for n in range(8): slow.send(1)\nsucceed.send_with_options(delay=60_000)")

    def depth(state: str) -> list[float]:
        points = [p for p in sink.points if p.name == "job.queue.depth" and p.attributes["job.state"] == state]
        return [point.value for point in points]

    eventually(lambda: max(depth("ready"), default=0) >= 2 and max(depth("scheduled"), default=0) == 1)
    worker.stop()
    assert max(depth("reserved")) >= 2
    points = [p for p in sink.points if p.name in ("job.queue.depth", "job.queue.oldest_age")]
    assert {point.resource["service.instance.id"] for point in points} == {"queue:redis/default"}
    ages = [point.value for point in points if point.name == "job.queue.oldest_age"]
    assert 0.3 < max(ages) < 10


def test_a_large_message_and_a_broker_with_a_namespace_have_an_age_too(worker: Worker, redis_url: str) -> None:
    before = time.time()
    worker.publish("""
named = RedisBroker(url=os.environ["BROKER"], namespace="shop")
named.enqueue(dramatiq.Message("media.x", "resize", ("x" * 100_000,), {}, {}))
""")
    [source] = from_url(redis_url, ["shop:media.x"])
    state = source.read()
    assert (source.name, state.ready) == ("media.x", 1)
    assert state.oldest_ready_at is not None
    assert before - 0.01 <= state.oldest_ready_at <= time.time()


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (b'{"options":{},"message_timestamp":%d}', 0.0),
        (b'{"options":{"requeue_timestamp":%d},"message_timestamp":1}', 0.0),
        (b'garbage ... "message_timestamp":%d}', 0.0),
        (b'{"options":[],"message_timestamp":%d}', 0.0),
        (b'{"options":{"otel_kit":{"due":"never"}},"message_timestamp":%d}', 0.0),
        (b"\x80\x04 pickled %d", None),
        (b"[%d]", None),
        (b"%d", None),
    ],
)
def test_the_age_of_a_message_is_told_by_whatever_it_says(encoded: bytes, expected: float | None) -> None:
    now = int(time.time() * 1000)
    found = ready_at(encoded % now)
    assert found == (None if expected is None else pytest.approx(now / 1000))


def test_a_run_whose_process_is_killed_is_lost_once_and_runs_again(worker: Worker, sink: OtlpSink) -> None:
    quick = {"OTEL_KIT_LEASE_TTL": "1"}
    worker.start(threads=1, **quick)
    worker.publish("die_once.send()")
    worker.process.wait(30)
    worker.start(threads=1, **quick)
    sink.wait_for(lambda _: len(worker.runs("die_once")) == 2, 30)
    worker.stop()
    [send] = worker.sends("die_once")
    lost, again = sorted(worker.runs("die_once"), key=lambda span: span.attributes["job.outcome"])
    assert [span.attributes["job.outcome"] for span in (lost, again)] == ["lost", "success"]
    assert (lost.status, lost.parent_id, lost.trace_id) == ("ERROR", send.span_id, send.trace_id)
    assert again.attributes["job.id"] == lost.attributes["job.id"]
    # The event that the dead process sent at the start has the very ids of the span that another made of it.
    started = [record.span_id for record in sink.logs if record.event_name == "job.started"]
    assert set(started) == {lost.span_id, again.span_id}
    assert worker.executions() == {("die_once", "lost"): 1, ("die_once", "success"): 1}
    assert len(worker.sends("die_once")) == 1


BROKERS = """
import dramatiq
from dramatiq.brokers.stub import StubBroker

workers = []

def try_out(name, broker):
    @dramatiq.actor(actor_name=name, broker=broker, queue_name=name)
    def work(number):
        pass
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    workers.append(worker)
    work.send(1)
    work.send_with_options(args=(2,), delay=10)
    broker.join(name)
    worker.join()

class Own(StubBroker):
    def enqueue(self, message, *, delay=None):
        return super().enqueue(message=message, delay=delay)

early = {"before": StubBroker(middleware=[]), "own-before": Own()}
import otel_kit
otel_kit.configure("worker")
for name, broker in early.items():
    try_out(name, broker)

class Later(StubBroker):
    def enqueue(self, message, *, delay=None):
        if delay is not None:
            return super().enqueue(message, delay=delay)
        self.queues[message.queue_name].put(message.encode())
        return message

for name, broker in {"after": StubBroker(), "own-after": Later(), "own-class-only": Own(middleware=[])}.items():
    try_out(name, broker)
for worker in workers:
    worker.stop()
"""


def test_every_broker_is_covered_whenever_it_was_made_and_whoever_wrote_it(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(BROKERS)
    assert ran.returncode == 0, ran.stderr
    assert "twice" not in ran.stderr
    expected = Counter(dict.fromkeys(("before", "own-before", "after", "own-after", "own-class-only"), 2))
    for kind in ("PRODUCER", "CONSUMER"):
        assert Counter(span.attributes["job.name"] for span in sink.spans if span.kind == kind) == expected
    assert {span.attributes["messaging.system"] for span in sink.spans} == {"stub"}
    assert total(sink, "job.worker.slots") == {}


ODD = """
import dramatiq, logging, sys
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Interrupt, Middleware
import otel_kit
otel_kit.configure("worker")

class Late(Interrupt):
    pass

class Interrupts(Middleware):
    # Strikes when the run is over and the other middleware is at work.
    def after_process_message(self, broker, message, *, result=None, exception=None):
        if message.actor_name == "late" and exception is None:
            raise Late

        if message.actor_name == "doomed":
            raise Late

class Later(StubBroker):
    # And when that is over, too.
    def emit_after(self, signal, *args, **kwargs):
        super().emit_after(signal, *args, **kwargs)
        if signal == "process_message" and args[0].actor_name == "later" and kwargs.get("exception") is None:
            raise Late

class Refuses(Middleware):
    def before_process_message(self, broker, message):
        if message.actor_name == "refused":
            message.fail()

bare = Later(middleware=[Interrupts(), Refuses()])

@dramatiq.actor(broker=bare)
def later(): ...

@dramatiq.actor(broker=bare)
def late(): ...

@dramatiq.actor(broker=bare)
def refused(): ...

@dramatiq.actor(broker=bare)
def fails():
    raise ValueError("and no middleware retries it")

@dramatiq.actor(broker=bare)
def stubborn():
    raise SystemExit(3)

worker = dramatiq.Worker(bare, worker_timeout=50, worker_threads=1)
worker.start()
for actor in (late, later, refused, fails, stubborn):
    actor.send()

class Vanishing(StubBroker):
    def enqueue(self, message, *, delay=None):
        if message.options.get("retries"):
            raise OSError("gone")
        return super().enqueue(message, delay=delay)

vanishing = Vanishing()

@dramatiq.actor(broker=vanishing)
def in_vain():
    raise ValueError("once more, please")

other = dramatiq.Worker(vanishing, worker_timeout=50, worker_threads=1)
other.start()
in_vain.send()
vanishing.join("default", fail_fast=False)
other.stop()

fatal = StubBroker(middleware=[Interrupts()])

@dramatiq.actor(broker=fatal)
def doomed():
    raise ValueError("and an interrupt while that is dealt with: Dramatiq's thread dies of it")

third = dramatiq.Worker(fatal, worker_timeout=50, worker_threads=1)
third.start()
doomed.send()
third.workers[0].join(10)
third.stop()
bare.enqueue(late.message().copy(options={"otel_kit": "nonsense", "retries": "many", "requeue_timestamp": [], "time_limit": "x"}))
bare.join("default", fail_fast=False)
worker.join()
worker.stop()
from opentelemetry import trace
from otel_kit.guard import faults
print(dict(faults()), trace.get_current_span().get_span_context().is_valid)
"""


def test_what_befalls_a_message_is_counted_once_whatever_it_is(
    programs: Programs, worker: Worker, sink: OtlpSink
) -> None:
    ran = programs.run(ODD)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "{} False\n", ran.stderr
    assert worker.executions() == {
        ("late", "failure"): 2, ("refused", "rejected"): 1, ("fails", "failure"): 1, ("stubborn", "failure"): 1,
        ("in_vain", "failure"): 1, ("later", "success"): 1, ("doomed", "failure"): 1,
    }  # fmt: skip
    assert [span.status for span in worker.sends("in_vain")] == ["UNSET", "ERROR"]
    assert total(sink, "job.active", "job.name") == {}
    assert [run.attributes["error.type"] for run in worker.runs("late")] == ["__main__.Late", "__main__.Late"]
    assert worker.runs("refused") == []


ABORTED = """
import time
import dramatiq
from dramatiq.brokers.stub import StubBroker
import otel_kit
otel_kit.configure("worker")
from dramatiq_abort import Abortable, abort
from dramatiq_abort.backends import StubBackend
from dramatiq_abort.abort_manager import Abort

broker = StubBroker()
dramatiq.set_broker(broker)
broker.add_middleware(Abortable(backend=StubBackend()))

@dramatiq.actor(throws=(Abort,))
def long():
    for _ in range(200):
        time.sleep(0.05)

@dramatiq.actor
def waiting():
    pass

abort(waiting.send().message_id)
worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
worker.start()
sent = long.send()
time.sleep(0.5)
abort(sent.message_id)
broker.join("default", fail_fast=False)
worker.join()
worker.stop()
"""


def test_what_somebody_aborts_is_revoked(programs: Programs, worker: Worker, sink: OtlpSink) -> None:
    ran = programs.run(ABORTED)
    assert ran.returncode == 0, ran.stderr
    assert worker.executions() == {("waiting", "revoked"): 1, ("long", "revoked"): 1}
    [run] = worker.runs("long")
    assert (run.status, run.attributes["job.outcome"]) == ("UNSET", "revoked")


def test_the_example_runs(programs: Programs, worker: Worker, sink: OtlpSink) -> None:
    example = Path(__file__).parents[2] / "examples" / "dramatiq"
    for file in example.glob("*.py"):
        programs.write(file.stem, file.read_text())
    command = (sys.executable, "-m", "dramatiq", "worker", "--processes", "2", "--threads", "4")
    process = programs.start(*command, REDIS_URL=worker.url)
    eventually(lambda: programs.output(process).count("Worker process is ready") == 2, 90)
    ran = programs.run("import gallery; gallery.main()", REDIS_URL=worker.url)
    assert (ran.returncode, ran.stdout) == (0, "10 uploads are queued\n"), ran.stderr
    ends = ("success", "failure")

    def ended(name: str) -> list[Span]:
        return [run for run in worker.runs(name) if run.attributes["job.outcome"] in ends]

    sink.wait_for(lambda _: len(ended("resize")) == len(ended("forget")) == 10, 40)
    # One is no photo, and one in 1,250 is given up.
    sink.wait_for(
        lambda _: len(ended("show")) == sum(r.attributes["job.outcome"] == "success" for r in ended("resize"))
    )
    assert programs.stop(process, 30) == 0
    assert {span.service for span in sink.spans} == {"gallery", "thumbnails"}
    uploads = {span.trace_id for span in sink.spans if span.name == "upload"}
    assert {span.trace_id for span in worker.runs("resize") if span.attributes["job.attempt"] == 1} == uploads


SCHEDULED = """
import logging, time
import dramatiq
from dramatiq.brokers.stub import StubBroker
from periodiq import PeriodiqMiddleware, cron
from otel_kit.jobs.decorator import job
import otel_kit
otel_kit.configure("worker")

broker = StubBroker()
dramatiq.set_broker(broker)
broker.add_middleware(PeriodiqMiddleware(skip_delay=30))

@dramatiq.actor(periodic=cron("0 3 * * *"), time_limit=60_000, max_retries=0)
@job("nightly", max_runtime=120, expected=LookupError)
def nightly(fails=False):
    if fails:
        raise LookupError("nothing to do")

@job("tick", schedule=3600)
def tick():
    nightly.send()

worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
worker.start()
nightly.send_with_options(scheduled_at=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()))
nightly.send_with_options(scheduled_at="2026-01-01T03:00:00+00:00")
nightly.send(True)
tick()
broker.join("default", fail_fast=False)
worker.join()
worker.stop()
"""


def test_a_scheduled_message_says_so_and_is_due_again(programs: Programs, worker: Worker, sink: OtlpSink) -> None:
    ran = programs.run(SCHEDULED)
    assert ran.returncode == 0, ran.stderr
    # One run each: what declares the function to be a job adds none inside Dramatiq's.
    assert worker.executions() == {
        ("nightly", "success"): 2, ("nightly", "missed"): 1, ("nightly", "failure"): 1, ("tick", "success"): 1,
    }  # fmt: skip
    by_cron, failed, by_tick = worker.runs("nightly")
    assert [run.attributes["job.trigger"] for run in (by_cron, failed, by_tick)] == ["cron", "manual", "schedule"]
    assert failed.status == "UNSET"
    [limit] = {p.value for p in sink.points if p.name == "job.max_runtime" and p.attributes["job.name"] == "nightly"}
    assert limit == 120
    due = [p for p in sink.points if p.name == "job.deadline.time" and p.attributes["job.name"] == "nightly"]
    # Three o'clock here, and the grace: its time limit, and a minute more.
    assert {time.strftime("%H:%M", time.localtime(point.value)) for point in due} == {"03:02"}
    assert 0 < due[0].value - time.time() <= 86_400 + 120


OFF = """
import dramatiq, dramatiq.worker
from dramatiq.broker import Broker
from dramatiq.brokers.stub import StubBroker
from dramatiq.message import Message
from dramatiq.worker import _ConsumerThread as ConsumerThread

def state():
    methods = [vars(Broker)[name] for name in ("__init__", "emit_before", "emit_after")]
    return [*methods, vars(StubBroker)["enqueue"], vars(Message)["decode"], vars(ConsumerThread)["handle_delayed_messages"]]

before = state()
import otel_kit
otel_kit.configure("worker")
from otel_kit.integrations.dramatiq import DramatiqInstrumentor
during = state()
DramatiqInstrumentor().uninstrument()
import dramatiq.brokers.redis
print(state() == before, any(a is b for a, b in zip(before, during)), type(dramatiq.brokers.redis.RedisBroker._dispatch).__name__)
DramatiqInstrumentor().instrument()
broker = StubBroker()
@dramatiq.actor(broker=broker)
def work():
    pass
work.send()
"""


def test_it_can_be_switched_off_and_on_again(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(OFF)
    assert ran.stdout == "True False function\n", ran.stderr
    assert [span.name for span in sink.spans] == ["send default"]
