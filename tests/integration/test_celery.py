"""Celery with real Redis and real workers: what a job leaves behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from otel_kit.catalogue import INSTRUMENTS
from otel_kit.testing import OtlpSink
from tests.integration.celery_worker import APP, Worker
from tests.integration.conftest import Programs, eventually, free_port


@pytest.fixture
def worker(programs: Programs, sink: OtlpSink, redis_url: str) -> Worker:
    return Worker(programs, sink, redis_url)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_job_is_one_trace_with_its_logs_and_is_counted_once(worker: Worker, sink: OtlpSink, pool: str) -> None:
    worker.start("--pool", pool, "--concurrency", "2")
    worker.publish("""
from opentelemetry import trace
with trace.get_tracer("test").start_as_current_span("request", kind=trace.SpanKind.SERVER):
    succeed.delay(5)
""")
    sink.wait_for(lambda _: worker.runs("succeed"))
    worker.stop()

    request, send, run, command = (
        next(span for span in sink.spans if span.name == name)
        for name in ("request", "send celery", "process celery", "SET")
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
        "messaging.destination.name": "celery",
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
        "messaging.destination.name": "celery",
        "messaging.message.id": job_id,
        "job.name": "succeed",
        "job.id": job_id,
        "job.attempt": 1,
        "job.trigger": "api",
        "job.outcome": "success",
    }
    logged = {record.body: record for record in sink.logs if record.trace_id == request.trace_id}
    for body in ("task logger 5", "plain logger 5"):
        assert logged[body].span_id == run.span_id
        assert logged[body].attributes["job.id"] == job_id
        assert logged[body].attributes["job.name"] == "succeed"
    assert worker.events()[1:] == ["job.started", "job.completed"]
    assert worker.executions() == {("succeed", "success"): 1}
    assert worker.last("messaging.client.consumed.messages") == 1
    assert worker.last("job.active", job__name="succeed") == 0
    # What the pool's own child was told is no business of telemetry.
    assert "argsrepr" not in repr(sink.logs)


def test_a_retry_is_a_trace_of_its_own_linked_to_the_attempt_before(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("retry_once.delay()")
    sink.wait_for(lambda _: len(worker.runs("retry.once")) == 2)
    worker.stop()
    first, second = sorted(worker.runs("retry.once"), key=lambda span: span.start)
    sends = sorted((span for span in sink.spans if span.kind == "PRODUCER"), key=lambda span: span.start)
    assert [span.attributes["job.attempt"] for span in (first, second)] == [1, 2]
    assert first.attributes["job.id"] == second.attributes["job.id"]
    assert [first.attributes["job.outcome"], second.attributes["job.outcome"]] == ["retry", "success"]
    assert first.status == "UNSET", "a retry is no error"
    assert first.trace_id != second.trace_id
    assert second.parent_id == ""
    assert second.links == [(first.trace_id, sends[1].span_id), (first.trace_id, first.span_id)]
    assert second.attributes["job.trigger"] == "retry"
    # It waited from its due time, not from the moment it was sent back.
    assert second.attributes["job.wait.duration"] < 0.29
    assert 0.2 < sends[1].attributes["job.delay"] <= 0.3
    [retried] = [record for record in sink.logs if record.event_name == "job.retried"]
    assert (retried.severity, retried.attributes["job.error.category"]) == ("WARN", "network")
    assert worker.executions() == {("retry.once", "retry"): 1, ("retry.once", "success"): 1}


def test_a_failure_marks_the_span_unless_the_job_expects_it(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("fail.delay(); fail_as_expected.delay()")
    sink.wait_for(lambda _: worker.runs("fail") and worker.runs("fail.expected"))
    worker.stop()
    [failed], [expected] = worker.runs("fail"), worker.runs("fail.expected")
    assert (failed.status, expected.status) == ("ERROR", "UNSET")
    assert failed.attributes["error.type"] == "ZeroDivisionError"
    assert failed.attributes["job.error.category"] == "code"
    assert len(failed.attributes["job.error.fingerprint"]) == 12
    assert [name for name, _ in failed.events] == ["exception"]
    assert {"exception"} & {name for name, _ in expected.events} == set()
    assert worker.executions() == {("fail", "failure"): 1, ("fail.expected", "failure"): 1}
    assert worker.last("job.errors", job__name="fail", error__type="ZeroDivisionError") == 1
    assert worker.last("job.last_failure.time", job__name="fail") == pytest.approx(failed.end, abs=1)


@pytest.mark.parametrize(("job", "error"), [("die", "WorkerLostError"), ("too_long", "TimeLimitExceeded")])
def test_a_job_whose_process_is_killed_is_lost_in_trace_log_and_metric(
    worker: Worker, sink: OtlpSink, job: str, error: str
) -> None:
    name = job.replace("_", ".")
    worker.start("--concurrency", "1")
    # At zero before anything has run: the first loss will be an increase.
    sink.wait_for(lambda _: worker.outcomes(name) >= {"lost", "failure"})
    worker.publish(f"{job}.delay()")
    sink.wait_for(lambda _: worker.runs(name))
    worker.stop()
    [run] = worker.runs(name)
    [send] = [span for span in sink.spans if span.kind == "PRODUCER"]
    assert (run.status, run.attributes["job.outcome"]) == ("ERROR", "lost")
    assert (run.trace_id, run.parent_id) == (send.trace_id, send.span_id)
    assert error in run.attributes["error.type"]
    [lost] = [record for record in sink.logs if record.event_name == "job.lost"]
    assert lost.trace_id == send.trace_id
    assert lost.attributes["job.id"] == run.attributes["job.id"]
    assert worker.executions() == {(name, "lost"): 1}


def test_a_job_that_is_terminated_on_purpose_is_revoked(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("too_long.apply_async(time_limit=120, task_id='too-long')")
    sink.wait_for(lambda _: "job.started" in worker.events())
    worker.publish("app.control.revoke('too-long', terminate=True)")
    sink.wait_for(lambda _: worker.runs("too.long"))
    worker.stop()
    [run] = worker.runs("too.long")
    assert (run.status, run.attributes["job.outcome"]) == ("UNSET", "revoked")
    assert worker.executions() == {("too.long", "revoked"): 1}
    assert worker.events() == ["job.created", "job.started", "job.revoked"]


def test_a_job_that_expires_in_the_queue_never_runs_and_is_counted(worker: Worker, sink: OtlpSink) -> None:
    worker.publish("succeed.apply_async(expires=0.01); time.sleep(0.1)")
    worker.start("--concurrency", "1")
    eventually(lambda: worker.executions().get(("succeed", "expired")) == 1)
    worker.stop()
    assert worker.executions() == {("succeed", "expired"): 1}
    assert worker.runs("succeed") == []
    [expired] = [record for record in sink.logs if record.event_name == "job.expired"]
    assert expired.trace_id == next(span.trace_id for span in sink.spans if span.kind == "PRODUCER")


def test_a_publish_from_a_job_continues_its_trace(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "2")
    worker.publish("parent.delay()")
    sink.wait_for(lambda _: worker.runs("parent") and worker.runs("succeed"))
    worker.stop()
    [outer], [inner] = worker.runs("parent"), worker.runs("succeed")
    [send] = [span for span in sink.spans if span.kind == "PRODUCER" and span.service == "worker"]
    assert (send.parent_id, inner.parent_id, inner.trace_id) == (outer.span_id, send.span_id, outer.trace_id)


def test_a_child_that_is_recycled_after_each_job_delivers_its_last_span(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "2", "--max-tasks-per-child", "1", OTEL_METRIC_EXPORT_INTERVAL="60000")
    worker.publish("for n in range(10): succeed.delay(n)")
    sink.wait_for(lambda _: len(worker.runs("succeed")) == 10, 40)
    worker.stop()
    assert len(worker.runs("succeed")) == 10
    assert worker.executions() == {("succeed", "success"): 10}
    # Ten children, and no more series than children alive at once: two, and one that is on its way out.
    assert len({p.resource["service.instance.id"] for p in sink.points if p.service == "worker"}) <= 1 + 3


def test_a_failed_publish_ends_its_span_with_an_error_and_leaves_no_context_behind(
    programs: Programs, sink: OtlpSink
) -> None:
    programs.write("jobs", APP)
    ran = programs.run(
        """
from jobs import *
from opentelemetry import trace
app.conf.task_publish_retry = False
try:
    succeed.delay(1)
except Exception as error:
    print(type(error).__name__, trace.get_current_span().get_span_context().is_valid)
with trace.get_tracer("test").start_as_current_span("next"):
    pass
""",
        BROKER=f"redis://127.0.0.1:{free_port()}/0",
        OTEL_SERVICE_NAME="producer",
    )
    assert ran.stdout == "OperationalError False\n", ran.stderr
    [send] = [span for span in sink.spans if span.kind == "PRODUCER"]
    [following] = [span for span in sink.spans if span.name == "next"]
    assert (send.name, send.status) == ("send celery", "ERROR")
    assert following.parent_id == ""
    [sent] = {p.attributes["error.type"] for p in sink.points if p.name == "messaging.client.sent.messages"}
    assert "OperationalError" in sent
    assert not [record for record in sink.logs if record.event_name == "job.created"]


@pytest.mark.parametrize("upstream", ["before", "after"])
def test_upstreams_instrumentation_is_taken_off_in_either_order(
    programs: Programs, sink: OtlpSink, redis_url: str, upstream: str
) -> None:
    programs.write("jobs", APP)
    theirs = "from opentelemetry.instrumentation.celery import CeleryInstrumentor as Theirs; Theirs().instrument()"
    before, after = (theirs, "") if upstream == "before" else ("", theirs)
    ran = programs.run(
        f"{before}\nfrom jobs import *\n{after}\nsucceed.delay(1)", BROKER=redis_url, OTEL_SERVICE_NAME="producer"
    )
    assert ran.returncode == 0, ran.stderr
    assert [(span.kind, span.name, span.scope) for span in sink.spans] == [("PRODUCER", "send celery", "otel_kit.jobs")]


def test_a_scheduled_job_says_so(worker: Worker, programs: Programs, sink: OtlpSink, tmp_path: Path) -> None:
    worker.start("--concurrency", "1")
    programs.write(
        "scheduled", "from jobs import *\napp.conf.beat_schedule = {'x': {'task': 'succeed', 'schedule': 0.5}}\n"
    )
    arguments = ("-m", "celery", "-A", "scheduled", "beat", "--schedule", str(tmp_path / "beat"))
    beat = programs.start(sys.executable, *arguments, BROKER=worker.broker, OTEL_SERVICE_NAME="beat")
    sink.wait_for(lambda _: worker.runs("succeed"), 20)
    programs.stop(beat)
    worker.stop()
    run = worker.runs("succeed")[0]
    assert run.attributes["job.trigger"] == "schedule"
    [send] = [span for span in sink.spans if span.span_id == run.parent_id]
    assert send.service == "beat"


def test_an_idle_worker_makes_no_spans(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("succeed.apply_async(countdown=5)")
    sink.wait_for(lambda _: worker.runs("succeed"), 20)
    worker.stop()
    # Five seconds of polling, and a message that lay unacknowledged: nothing but the job itself.
    assert sorted(span.name for span in sink.spans if span.service == "worker") == ["SET", "process celery"]


def test_an_eager_job_is_a_run_inside_its_caller(programs: Programs, sink: OtlpSink, redis_url: str) -> None:
    programs.write("jobs", APP)
    ran = programs.run(
        """
from jobs import *
from opentelemetry import trace
app.conf.task_always_eager = True
with trace.get_tracer("test").start_as_current_span("caller"):
    succeed.delay(1)
    fail_unspeakable.delay()
    with trace.get_tracer("test").start_as_current_span("after"):
        pass
""",
        BROKER=redis_url,
    )
    assert ran.returncode == 0, ran.stderr
    [caller] = [span for span in sink.spans if span.name == "caller"]
    run, failed = [span for span in sink.spans if span.attributes.get("job.name")]
    assert (run.kind, run.name, run.attributes["job.outcome"]) == ("INTERNAL", "succeed", "success")
    assert (failed.status, failed.attributes["job.outcome"]) == ("ERROR", "failure")
    assert "messaging.system" not in run.attributes
    # An error that cannot even be printed leaves no span open behind it.
    [after] = [span for span in sink.spans if span.name == "after"]
    assert {run.parent_id, failed.parent_id, after.parent_id} == {caller.span_id}
    latest = {repr(p.attributes): p.value for p in sink.points if p.name == "job.active"}
    assert set(latest.values()) == {0}


def test_what_a_task_says_of_itself_is_no_error(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--concurrency", "1")
    worker.publish("ignore.delay(); fail_unspeakable.delay()")
    sink.wait_for(lambda _: worker.runs("ignore") and worker.runs("fail.unspeakable"))
    worker.stop()
    assert worker.executions() == {("ignore", "success"): 1, ("fail.unspeakable", "failure"): 1}
    assert {p.attributes["job.name"] for p in sink.points if p.name == "job.errors"} == {"fail.unspeakable"}
    [failed] = [record for record in sink.logs if record.event_name == "job.failed"]
    assert "Unspeakable, whose str() raises RuntimeError" in failed.body


def test_a_queue_has_one_name_for_producer_and_worker(worker: Worker, programs: Programs, sink: OtlpSink) -> None:
    topic = """
from kombu import Exchange, Queue
app.conf.task_queues = [Queue("media", Exchange("media", type="topic"), routing_key="media.#")]
app.conf.task_routes = {"*": {"queue": "media", "routing_key": "media.video"}}
"""
    programs.write("jobs", APP + topic)
    worker.start("--concurrency", "1")
    worker.publish("succeed.delay(1)")
    sink.wait_for(lambda _: worker.runs("succeed"))
    worker.stop()
    names = {span.name for span in sink.spans if "messaging.system" in span.attributes}
    assert names == {"send media", "process media"}
    queues = {
        p.attributes["messaging.destination.name"] for p in sink.points if p.name.startswith(("job.exec", "messag"))
    }
    assert queues == {"media"}


def test_a_linked_run_is_sampled_as_its_producer_was(worker: Worker, sink: OtlpSink) -> None:
    half = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    worker.start("--concurrency", "1", **half)
    worker.publish("for n in range(30): succeed.apply_async((n,), countdown=0.01)")  # the producer samples all
    sink.wait_for(lambda _: len(worker.runs("succeed")) == 30, 30)
    sink.clear()
    ran = worker.programs.run(
        "from jobs import *\nfor n in range(10): succeed.apply_async((n,), countdown=0.01)",
        BROKER=worker.broker, OTEL_SERVICE_NAME="producer", OTEL_TRACES_SAMPLER="always_off",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    sink.wait_for(lambda s: sum(record.event_name == "job.completed" for record in s.logs) == 10, 30)
    worker.stop()
    assert worker.runs("succeed") == []


def test_what_is_emitted_is_what_the_catalogue_says(worker: Worker, programs: Programs, sink: OtlpSink) -> None:
    programs.write("jobs", APP + "app.conf.beat_schedule = {'x': {'task': 'succeed', 'schedule': 3600}}\n")
    worker.start("--concurrency", "1")
    worker.publish("succeed.delay(); fail.delay()")
    sink.wait_for(lambda _: worker.runs("succeed") and worker.runs("fail"))
    worker.stop()
    emitted: dict[str, set[str]] = {}
    units: dict[str, str] = {}
    for point in sink.points:
        emitted.setdefault(point.name, set()).update(point.attributes)
        units[point.name] = point.unit
    declared = {instrument.name: instrument for instrument in INSTRUMENTS}
    # No job came back after a loss, and none has named its steps.
    assert set(declared) - set(emitted) == {"job.recovered", "job.step.duration"}
    assert set(emitted) <= set(declared)
    for name, attributes in emitted.items():
        # error.type is on the publishes that fail, which none did here.
        assert attributes | {"error.type"} >= set(declared[name].attributes) >= attributes, name
        assert units[name] == declared[name].unit
    buckets = {point.name: point.bounds for point in sink.points if point.kind == "histogram"}
    edges = {
        name: instrument.buckets for name, instrument in declared.items() if instrument.buckets and name in emitted
    }
    assert buckets == edges
