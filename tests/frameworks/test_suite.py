"""The same scenarios on every framework, with real workers and a real broker: the same spans, metrics and events."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from otel_kit.testing import MetricPoint, Span
from tests.frameworks.adapter import Framework
from tests.frameworks.conftest import Bench, Seen
from tests.frameworks.registry import frameworks
from tests.integration.conftest import eventually

#: What a framework can do, as the documentation's table calls it.
CAPABILITIES = {
    "succeed": "One trace from the publish to the run, waits, durations, counts and events",
    "fail": "Failures with fingerprint, category and consecutive failures",
    "retry": "Retries as a run each, linked to the attempt before",
    "delayed": "Delayed jobs: the wait counts from the wanted start",
    "priority": "Priorities: the wait is right whoever goes first",
    "periodic": "Periodic runs by the framework's own schedule, known as such",
    "dead_broker": "A publish that fails is seen, and leaves nothing behind in its caller",
    "killed": "A worker killed in the middle of a job: the job is lost within a minute",
    "poison": "A message that cannot be read is counted, and the worker goes on",
    "unknown": "A job that the worker does not know is counted, and the worker goes on",
    "burst": "A thousand jobs: a thousand runs, none twice",
    "nested": "Jobs that publish jobs stay in one trace",
    "depth": "Depth of the queue and age of its oldest job, under an identity of its own",
    "running": "What runs now and for how long; slots, utilisation, heartbeat",
    "skew": "A producer's clock that is ahead gives no negative wait",
}
TOLERANCE = 0.05


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "framework" not in metafunc.fixturenames:
        return
    marker = next(mark for mark in metafunc.definition.iter_markers("capability"))
    able = [each for each in frameworks() if CAPABILITIES_BY_TEXT[marker.args[0]] not in each.lacks]
    metafunc.parametrize(
        "framework",
        [pytest.param(each, id=each.name) for each in able],
        scope="module",
    )


CAPABILITIES_BY_TEXT = {text: key for key, text in CAPABILITIES.items()}


def capability(key: str) -> pytest.MarkDecorator:
    return pytest.mark.capability(CAPABILITIES[key])


def within(bench: Bench, timeout: float, condition: Callable[[], object]) -> None:
    """Wait for a condition; a failure shows what the programs printed."""
    try:
        eventually(condition, timeout)
    except AssertionError as late:
        raise AssertionError(f"{late}\n{bench.output()}") from None


def wait_is_right(run: Span, ready_at: float) -> bool:
    """Whether the run's wait is its start minus the moment at which it could have started."""
    return abs(run.attributes["job.wait.duration"] - max(0.0, run.start - ready_at)) < TOLERANCE


def _highest(points: list[MetricPoint]) -> float:
    return max((point.value for point in points), default=0.0)


@capability("succeed")
def test_success(framework: Framework, bench: Bench, seen: Seen) -> None:
    bench.publish("succeed", 7)
    within(bench, 20, lambda: seen.outcomes("succeed") == {"success": 1} and seen.runs("succeed"))
    within(bench, 10, lambda: {"job.started", "job.completed"} <= set(seen.events("succeed")))
    (run,) = seen.runs("succeed")
    assert run.status == "UNSET"
    assert run.attributes["job.outcome"] == "success"
    assert run.attributes["job.attempt"] == 1
    assert seen.measured("job.duration", job__name="succeed", job__outcome="success") == 1
    told = [record for record in seen.records("succeed") if record.event_name]
    started, completed = told[-2:]
    assert [started.event_name, completed.event_name] == ["job.started", "job.completed"]
    assert {(record.trace_id, record.span_id) for record in (started, completed)} == {(run.trace_id, run.span_id)}
    within(bench, 5, lambda: seen.gauge("job.last_success.time", job__name="succeed"))
    assert seen.gauge("job.last_success.time", job__name="succeed")[-1].value == pytest.approx(run.end, abs=1)
    if framework.system:
        (send,) = seen.sends("succeed")
        assert (send.name, run.name) == (f"send {framework.queue}", f"process {framework.queue}")
        assert (run.trace_id, run.parent_id) == (send.trace_id, send.span_id)
        for span, operation in ((send, "send"), (run, "process")):
            assert span.attributes["messaging.system"] == framework.system
            assert span.attributes["messaging.operation.type"] == operation
            assert span.attributes["messaging.destination.name"] == framework.queue
            assert span.attributes["job.id"] == send.attributes["job.id"] != ""
        assert wait_is_right(run, send.start) or wait_is_right(run, send.end)
        assert seen.measured("job.wait.duration", job__name="succeed") == 1
        sent = {"messaging__destination__name": framework.queue, "service": "producer"}
        assert seen.counted("messaging.client.sent.messages", **sent) == 1
        within(bench, 10, lambda: "job.created" in seen.events("succeed"))
        assert seen.events("succeed")[0] == "job.created"
    else:
        assert run.name == "succeed"


@capability("fail")
def test_failure(framework: Framework, bench: Bench, seen: Seen) -> None:
    bench.publish("fail")
    within(bench, 20, lambda: seen.outcomes("fail") == {"failure": 1} and seen.runs("fail"))
    within(bench, 10, lambda: "job.failed" in seen.events("fail"))
    (run,) = seen.runs("fail")
    assert run.status == "ERROR"
    assert run.attributes["error.type"] == "ZeroDivisionError"
    assert run.attributes["job.error.category"] == "code"
    assert len(run.attributes["job.error.fingerprint"]) == 12
    assert [name for name, _ in run.events] == ["exception"]
    assert seen.events("fail")[-1] == "job.failed"
    assert seen.counted("job.errors", job__name="fail", error__type="ZeroDivisionError") == 1
    within(bench, 5, lambda: seen.gauge("job.last_failure.time", job__name="fail"))
    within(bench, 5, lambda: _highest(seen.gauge("job.consecutive_failures", job__name="fail")) >= 1)


@capability("retry")
def test_retry_then_success(framework: Framework, bench: Bench, seen: Seen) -> None:
    bench.publish("retry_once")
    within(bench, 40, lambda: seen.outcomes("retry_once") == {"retry": 1, "success": 1})
    within(bench, 10, lambda: len(seen.runs("retry_once")) == 2)
    within(bench, 10, lambda: {"job.retried", "job.completed"} <= set(seen.events("retry_once")))
    first, second = seen.runs("retry_once")
    assert [span.attributes["job.outcome"] for span in (first, second)] == ["retry", "success"]
    assert [span.attributes["job.attempt"] for span in (first, second)] == [1, 2]
    assert [span.status for span in (first, second)] == ["UNSET", "UNSET"]
    assert first.attributes["job.id"] == second.attributes["job.id"]
    assert (first.trace_id, first.span_id) in second.links
    assert second.attributes["job.trigger"] == "retry"
    assert "job.retried" in seen.events("retry_once")
    assert seen.events("retry_once")[-1] == "job.completed"
    assert 0 <= second.attributes["job.wait.duration"] <= second.start - first.end + TOLERANCE
    if framework.backoff is not None:
        assert wait_is_right(second, first.end + framework.backoff)


@capability("delayed")
def test_delayed(framework: Framework, bench: Bench, seen: Seen) -> None:
    bench.publish("succeed", delay=1.5)
    within(bench, 40, lambda: seen.outcomes("succeed") == {"success": 1} and seen.runs("succeed"))
    (run,) = seen.runs("succeed")
    if not framework.system:
        assert run.attributes["job.wait.duration"] < 1.5
        return
    sends = seen.sends("succeed")
    assert len(sends) == 1
    (send,) = sends
    assert send.attributes["job.delay"] == pytest.approx(1.5, abs=0.2)
    assert run.start - send.start >= 1.4
    assert wait_is_right(run, send.start + send.attributes["job.delay"])
    assert run.trace_id != send.trace_id
    assert (send.trace_id, send.span_id) in run.links


@capability("priority")
def test_priorities(framework: Framework, bench: Bench, seen: Seen) -> None:
    bench.publish("slow", 1.0, count=framework.slots)
    bench.publish("succeed", priority=0)
    bench.publish("succeed", priority=9)
    within(bench, 40, lambda: seen.outcomes("succeed") == {"success": 2} and len(seen.runs("succeed")) == 2)
    sends = {send.span_id: send for send in seen.sends("succeed")}
    for run in seen.runs("succeed"):
        assert wait_is_right(run, sends[run.parent_id].start) or wait_is_right(run, sends[run.parent_id].end)


@capability("periodic")
def test_periodic(framework: Framework, bench: Bench, seen: Seen) -> None:
    within(
        bench,
        framework.periodic_within,
        lambda: (
            seen.outcomes("periodic").get("success", 0) >= framework.periodic_runs
            and len(seen.runs("periodic")) >= framework.periodic_runs
        ),
    )
    assert {run.attributes["job.trigger"] for run in seen.runs("periodic")} <= {"cron", "schedule"}
    assert set(seen.outcomes("periodic")) == {"success"}


@capability("dead_broker")
def test_publish_to_a_dead_broker(framework: Framework, bench: Bench, seen: Seen, dead_broker: str) -> None:
    code = """
from opentelemetry import context
before = context.get_current()
try:
    app.publish("succeed")
except Exception as error:
    print("raised", type(error).__name__)
print("same context", context.get_current() == before)
"""
    url = dead_broker if framework.broker == "redis" else "postgresql{}://nobody@127.0.0.1:1/none"
    ran = bench.run(code, BROKER=url)
    assert "raised " in ran.stdout, ran.stdout + ran.stderr
    assert "same context True" in ran.stdout
    within(bench, 10, lambda: seen.sends("succeed"))
    (send,) = seen.sends("succeed")
    assert send.status == "ERROR"
    assert send.attributes["error.type"]
    assert seen.counted("messaging.client.sent.messages", error__type=send.attributes["error.type"]) == 1
    assert seen.events("succeed") == []


@capability("killed")
@pytest.mark.timeout(240)
def test_worker_killed_in_the_middle_of_a_job(framework: Framework, fresh: Bench) -> None:
    fresh.start(OTEL_SERVICE_NAME="first")
    if framework.watchers:
        fresh.start(OTEL_SERVICE_NAME="second")
    seen = Seen(fresh)
    fresh.publish("die")
    within(fresh, 20, lambda: "job.started" in seen.events("die"))
    began = time.monotonic()
    within(
        fresh, 60, lambda: seen.outcomes("die").get("lost") and "job.lost" in seen.events("die") and seen.runs("die")
    )
    assert time.monotonic() - began < 60
    lost = seen.runs("die")[0]
    assert lost.attributes["job.outcome"] == "lost"
    assert lost.status == "ERROR"
    record = next(record for record in seen.records("die") if record.event_name == "job.lost")
    assert record.severity == "ERROR"
    assert record.trace_id == lost.trace_id
    assert seen.records("die")[0].attributes["job.id"] == lost.attributes["job.id"]


@capability("poison")
def test_poison(framework: Framework, bench: Bench, seen: Seen) -> None:
    framework.poison(bench.broker)
    within(bench, 30, lambda: seen.counted("job.executions", job__outcome="rejected") >= 1)
    bench.publish("succeed")
    within(bench, 30, lambda: seen.outcomes("succeed") == {"success": 1})


@capability("unknown")
def test_unknown_job(framework: Framework, bench: Bench, seen: Seen) -> None:
    bench.publish("no.such.job")
    within(bench, 30, lambda: sum(seen.outcomes("no.such.job").values()) >= 1)
    assert set(seen.outcomes("no.such.job")) <= {"rejected", "failure"}
    bench.publish("succeed")
    within(bench, 30, lambda: seen.outcomes("succeed") == {"success": 1})


@capability("burst")
@pytest.mark.timeout(240)
def test_burst(framework: Framework, bench: Bench, seen: Seen) -> None:
    bench.publish("succeed", count=1000)
    within(bench, 150, lambda: seen.outcomes("succeed") == {"success": 1000})
    within(bench, 20, lambda: len(seen.runs("succeed")) >= 1000)
    runs = seen.runs("succeed")
    assert len(runs) == len({run.span_id for run in runs}) == 1000
    assert len({run.attributes["job.id"] for run in runs}) == 1000
    assert seen.outcomes("succeed") == {"success": 1000}
    if framework.system:
        assert len({send.span_id for send in seen.sends("succeed")}) == 1000
        parents = {send.span_id for send in seen.sends("succeed")}
        assert {run.parent_id for run in runs} == parents


@capability("nested")
def test_nested(framework: Framework, bench: Bench, seen: Seen) -> None:
    bench.publish("nested")
    within(bench, 30, lambda: seen.runs("nested") and seen.runs("succeed"))
    (outer,), (inner,) = seen.runs("nested"), seen.runs("succeed")
    assert outer.trace_id == inner.trace_id
    if framework.system:
        (send,) = seen.sends("succeed")
        assert send.parent_id == outer.span_id
        assert inner.parent_id == send.span_id


@capability("depth")
def test_depth_and_age(framework: Framework, bench: Bench, seen: Seen) -> None:
    def depth(state: str) -> list[float]:
        return [point.value for point in seen.gauge("job.queue.depth", job__state=state, **named)]

    named = {"messaging__destination__name": framework.queue, "messaging__system": framework.system}
    within(bench, 30, lambda: depth("ready") and depth("ready")[-1] == 0)
    assert {state for state in ("ready", "scheduled", "reserved", "dead") if depth(state)} == {
        "ready", "scheduled", "reserved", "dead",
    }  # fmt: skip
    bench.publish("slow", 8.0, count=framework.slots)
    within(
        bench, 20, lambda: len([r for r in seen.records("slow") if r.event_name == "job.started"]) == framework.slots
    )
    bench.publish("succeed", count=framework.prefetch + 3)
    within(bench, 20, lambda: 3 in depth("ready"))
    within(bench, 20, lambda: _highest(seen.gauge("job.queue.oldest_age", **named)) > 0.5)
    within(bench, 40, lambda: depth("ready")[-1] == 0 and seen.gauge("job.queue.oldest_age", **named)[-1].value == 0)
    waiting = framework.prefetch + 3
    within(bench, 20, lambda: len(seen.runs("succeed")) == waiting and len(seen.runs("slow")) == framework.slots)
    identities = {point.resource["service.instance.id"] for point in seen.gauge("job.queue.depth", **named)}
    assert identities == {f"queue:{framework.system}/{framework.queue}"}
    assert {point.service for point in seen.gauge("job.queue.depth", **named)} == {"queues"}


@capability("running")
def test_running_jobs_and_workers(framework: Framework, bench: Bench, seen: Seen) -> None:
    bench.publish("slow", 3.0)
    within(bench, 20, lambda: _highest(seen.gauge("job.active", job__name="slow")) == 1)
    within(bench, 20, lambda: _highest(seen.gauge("job.active.oldest_age", job__name="slow")) > 1)
    within(bench, 20, lambda: seen.outcomes("slow") == {"success": 1})
    within(bench, 10, lambda: seen.gauge("job.active", job__name="slow")[-1].value == 0)
    if framework.system:
        queue = {"messaging__destination__name": framework.queue}
        within(bench, 5, lambda: seen.gauge("job.worker.slots", **queue))
        assert seen.gauge("job.worker.slots", **queue)[-1].value == framework.slots
        busy = [point.value for point in seen.gauge("job.worker.count", job__worker__state="busy", **queue)]
        assert max(busy) >= 1
        assert seen.counted("job.worker.busy_time", **queue) == pytest.approx(3.0, abs=1.0)
        assert seen.gauge("job.worker.heartbeat.time", **queue)[-1].value == pytest.approx(time.time(), abs=10)


@capability("skew")
def test_a_clock_that_is_ahead(framework: Framework, bench: Bench, seen: Seen) -> None:
    ahead = "import time\nreal = time.time\ntime.time = lambda: real() + 2\napp.publish('succeed')"
    ran = bench.run(ahead)
    assert ran.returncode == 0, ran.stderr
    within(bench, 30, lambda: seen.outcomes("succeed") == {"success": 1} and seen.runs("succeed"))
    (run,) = seen.runs("succeed")
    assert run.attributes["job.wait.duration"] == pytest.approx(0, abs=TOLERANCE)
    assert seen.counted("job.wait.duration", job__name="succeed") >= 0
