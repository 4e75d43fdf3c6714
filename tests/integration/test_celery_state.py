"""What Celery's workers and its beat say of themselves, and how a lost job is sent once more."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from celery.schedules import crontab, schedule

from otel_kit.integrations.celery import recovery
from otel_kit.integrations.celery.schedules import Times, entries_of
from otel_kit.testing import MetricPoint, OtlpSink
from tests.integration.celery_worker import Worker
from tests.integration.conftest import Programs, eventually

APP = """
import os, signal, time
import otel_kit
otel_kit.configure(os.environ.get("OTEL_SERVICE_NAME", "worker"))
from celery import Celery
from celery.schedules import crontab

app = Celery("jobs", broker=os.environ["BROKER"])
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_prefetch_multiplier = 1
app.conf.beat_schedule = {
    "often": {"task": "often", "schedule": 1.0},
    "nightly": {"task": "nightly", "schedule": crontab(minute=0, hour=3)},
    "weekly": {"task": "nightly", "schedule": crontab(minute=0, hour=2, day_of_week=1)},
    "elsewhere": {"task": "elsewhere", "schedule": 3600},
}

@app.task(name="often")
def often():
    pass

@app.task(name="nightly", time_limit=600)
def nightly():
    pass

@app.task(name="slow", acks_late=True)
def slow(seconds):
    time.sleep(seconds)

@app.task(name="twice", otel_kit_recover=True)
def twice(number, word=""):
    if not os.path.exists("survive"):
        open("survive", "w").close()
        time.sleep(60)
    open(f"done-{number}-{word}", "w").close()
"""


@pytest.fixture
def worker(programs: Programs, sink: OtlpSink, redis_url: str) -> Worker:
    return Worker(programs, sink, redis_url, APP)


def points(sink: OtlpSink, name: str, service: str, **attributes: str) -> list[MetricPoint]:
    """Points of a metric, in the order in which they came."""
    wanted = {key.replace("__", "."): value for key, value in attributes.items()}
    found = [p for p in sink.points if (p.name, p.service) == (name, service)]
    return [point for point in found if wanted.items() <= point.attributes.items()]


def start_beat(worker: Worker, folder: Path) -> Any:
    arguments = ("-m", "celery", "-A", "jobs", "beat", "--loglevel", "info", "--schedule", str(folder / "beat"))
    return worker.programs.start(sys.executable, *arguments, BROKER=worker.broker, OTEL_SERVICE_NAME="beat")


def test_beat_tells_when_its_jobs_are_due_and_that_it_ticks(worker: Worker, sink: OtlpSink, tmp_path: Path) -> None:
    began = time.time()
    beat = start_beat(worker, tmp_path)
    sink.wait_for(lambda _: len(worker.spans("PRODUCER", "often")) >= 2, 30)
    deadlines = {p.attributes["job.name"]: p.value for p in points(sink, "job.deadline.time", "beat")}
    assert set(deadlines) == {"often", "nightly", "elsewhere"}
    assert began + 1 <= deadlines["often"] <= time.time() + 1 + 3600
    assert deadlines["elsewhere"] > began + 3600
    # The earlier of its two, and its time limit and a minute beside.
    due = deadlines["nightly"] - 660
    assert datetime.fromtimestamp(due, UTC).strftime("%H:%M") in ("02:00", "03:00")
    assert 0 < due - began <= 86_400
    heartbeat = points(sink, "job.worker.heartbeat.time", "beat", source="loop")[-1]
    assert heartbeat.value == pytest.approx(heartbeat.time, abs=1)
    assert worker.programs.stop(beat) == 0


def test_beats_heartbeat_stands_still_while_a_publish_hangs(worker: Worker, sink: OtlpSink, tmp_path: Path) -> None:
    hanging = (
        APP
        + """
from celery.signals import before_task_publish
@before_task_publish.connect
def hang(**_):
    time.sleep(60)
"""
    )
    worker.programs.write("jobs", hanging)
    start_beat(worker, tmp_path)

    def behind() -> float:
        beats = points(sink, "job.worker.heartbeat.time", "beat", source="loop")
        return beats[-1].time - beats[-1].value if beats else 0.0

    # 5 seconds of them are allowed for.
    eventually(lambda: behind() > 1, 30)


@pytest.mark.parametrize(("entry", "trigger"), [("{'schedule': 0.5}", "schedule"), ("{'schedule': always}", "cron")])
def test_a_job_says_what_kind_of_schedule_it_comes_from(
    worker: Worker, sink: OtlpSink, tmp_path: Path, entry: str, trigger: str
) -> None:
    worker.programs.write(
        "jobs",
        APP
        + f"""
class Always(crontab):
    def is_due(self, last_run_at):
        return True, 0.5
always = Always()
app.conf.beat_schedule = {{"x": dict({entry}, task="often")}}
""",
    )
    start_beat(worker, tmp_path)
    sink.wait_for(lambda _: worker.records("job.created"), 30)
    created = worker.records("job.created")[0]
    assert created.attributes["job.trigger"] == trigger


def test_a_worker_tells_its_slots_as_autoscale_changes_them(worker: Worker, sink: OtlpSink) -> None:
    worker.start("--autoscale", "3,1")
    worker.publish("for _ in range(6): slow.delay(2)")
    pool = {"messaging__destination__name": "celery"}
    eventually(lambda: max(p.value for p in points(sink, "job.worker.slots", "worker", **pool)) == 3, 30)
    assert points(sink, "job.worker.slots", "worker", **pool)[0].value == 1
    busy = points(sink, "job.worker.count", "worker", job__worker__state="busy", **pool)
    assert max(point.value for point in busy) >= 1
    worker.stop()


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_workers_loop_shows_life_and_knows_its_deadlines(worker: Worker, sink: OtlpSink, pool: str) -> None:
    began = time.time()
    worker.start("--pool", pool, "--concurrency", "2")

    def beats() -> list[MetricPoint]:
        return points(sink, "job.worker.heartbeat.time", "worker", source="loop")

    eventually(lambda: len({point.value for point in beats()}) >= 3)
    worker.publish("often.delay(); slow.delay(4)")
    sink.wait_for(lambda _: worker.runs("slow"), 30)
    worker.stop()
    assert max(point.time - point.value for point in beats()) < 3.5
    assert points(sink, "job.worker.heartbeat.time", "worker", source="thread")
    deadlines = {p.attributes["job.name"]: p.value for p in points(sink, "job.deadline.time", "worker")}
    # Only what this worker can run; from the last success on.
    assert set(deadlines) == {"often", "nightly"}
    assert deadlines["often"] > began + 1


def test_the_loop_shows_life_again_after_the_broker_has_dropped_its_connections(
    worker: Worker, sink: OtlpSink, redis_url: str
) -> None:
    worker.start("--concurrency", "1")

    def beats() -> set[float]:
        return {p.value for p in points(sink, "job.worker.heartbeat.time", "worker", source="loop")}

    eventually(lambda: len(beats()) >= 2)
    with redis.Redis.from_url(redis_url) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    eventually(lambda: "Connection to broker lost" in worker.programs.output(worker.process))
    before = time.time()
    eventually(lambda: max(beats()) > before + 2, 20)
    worker.publish("often.delay()")
    sink.wait_for(lambda _: worker.runs("often"), 20)
    worker.stop()


def test_a_loop_that_is_stopped_shows(worker: Worker, sink: OtlpSink) -> None:
    blocking = (
        APP
        + """
from celery import signals
from celery.worker.control import control_command

@control_command()
def block(state):
    time.sleep(8)
"""
    )
    worker.programs.write("jobs", blocking)
    worker.start("--concurrency", "1")
    worker.publish("app.control.broadcast('block')")

    def behind() -> float:
        beats = points(sink, "job.worker.heartbeat.time", "worker", source="loop")
        return max((point.time - point.value for point in beats), default=0.0)

    eventually(lambda: behind() > 4, 20)


def test_a_lost_job_is_sent_once_more_as_it_was(
    worker: Worker, programs: Programs, sink: OtlpSink, redis_url: str
) -> None:
    """Killed with its worker, its message is in its lease."""
    environment = {"OTEL_KIT_LEASE_TTL": "1"}
    worker.start("--concurrency", "1", **environment)
    worker.publish("twice.apply_async((7,), {'word': 'again'}, task_id='precious', priority=3)")
    sink.wait_for(lambda _: "job.started" in worker.events())
    time.sleep(1)  # that long a run is sure to have its lease
    os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait(10)
    worker.start("--concurrency", "1", **environment)
    sink.wait_for(lambda _: worker.records("job.lost"), 30)
    [lost] = worker.records("job.lost")
    assert lost.attributes["job.id"] == "precious"
    ran = programs.run(
        """
from jobs import *
import json
from otel_kit.integrations.celery.recovery import recover
from otel_kit.integrations.redis_leases import RedisLeases
[found] = RedisLeases(os.environ["BROKER"]).lost()
assert (found.lease.framework, found.lease.job.recoverable) == ("celery", True)
print(recover(app, json.loads(found.lease.payload)))
""",
        BROKER=redis_url, OTEL_SERVICE_NAME="operator",
    )  # fmt: skip
    assert ran.stdout == "precious\n", ran.stderr
    eventually(lambda: (programs.directory / "done-7-again").exists())
    worker.stop()
    send = worker.spans("PRODUCER", "twice")[-1]
    assert send.service == "operator"
    done = [run for run in worker.runs("twice") if run.attributes["job.outcome"] == "success"]
    [run] = done
    assert run.attributes["job.trigger"] == "retry"
    assert run.trace_id == send.trace_id
    assert run.attributes["job.wait.duration"] < 5


@pytest.mark.parametrize(
    "payload", [{}, {"headers": 5, "body": ""}, {"headers": {"task": "x", "id": "y"}, "body": "!"}]
)
def test_what_is_no_payload_is_named(payload: dict[str, Any]) -> None:
    with (
        Celery("none", broker="memory://", set_as_current=False) as app,
        pytest.raises(ValueError, match="no payload of a Celery job"),
    ):
        recovery.recover(app, payload)


def test_the_next_run_is_the_first_of_all_schedules() -> None:
    with Celery("times", set_as_current=False) as app:
        app.conf.timezone = "Europe/Berlin"
        app.conf.beat_schedule = {
            "a": {"task": "t", "schedule": crontab(minute=30, hour=2)},
            "b": {"task": "t", "schedule": crontab(minute=0, hour=12, day_of_week="mon-fri")},
        }
        times = Times([entry.schedule for entry in entries_of(app)])
        saturday = datetime(2026, 11, 21, 3, 0, tzinfo=UTC).timestamp()
        first = times.next_run(saturday)
        assert first == datetime(2026, 11, 22, 1, 30, tzinfo=UTC).timestamp()
        monday = datetime(2026, 11, 23, 8, 0, tzinfo=UTC).timestamp()
        assert times.next_run(monday) == datetime(2026, 11, 23, 11, 0, tzinfo=UTC).timestamp()
        # Asking has changed nothing about the schedule itself.
        assert all(entry.schedule.nowfun is None for entry in entries_of(app))
        every = Times([schedule(90.0, app=app)])
        assert every.next_run(1000.0) == 1090.0


def test_a_payload_is_fit_for_json() -> None:
    message = SimpleNamespace(
        body=b"[[], {}, {}]",
        content_type="application/json",
        content_encoding="utf-8",
        headers={"task": "t", "id": "i", "otel-kit-run": (1, 2), "odd": object()},
        properties={"priority": 3, "delivery_tag": "x", "delivery_info": {"exchange": ""}, "correlation_id": "i"},
        delivery_info={"exchange": "", "routing_key": "celery"},
    )
    payload = json.loads(json.dumps(recovery.recovery_payload(SimpleNamespace(message=message))))
    assert payload["headers"] == {"task": "t", "id": "i"}
    assert payload["properties"] == {"priority": 3, "correlation_id": "i"}
    assert (payload["exchange"], payload["routing_key"]) == ("", "celery")
