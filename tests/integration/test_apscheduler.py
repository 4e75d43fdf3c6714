"""APScheduler 3 with its real schedulers and executors: what a run leaves behind, and what would have been one."""

from __future__ import annotations

import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from otel_kit.testing import OtlpSink, Span
from tests.integration.conftest import Programs, eventually

START = """
import asyncio, logging, os, sys, time
from datetime import UTC, datetime, timedelta
import otel_kit
from apscheduler.schedulers.background import BackgroundScheduler

def configure():
    otel_kit.configure("scheduler")
"""


def runs(sink: OtlpSink, job: str) -> list[Span]:
    found = [span for span in sink.spans if span.attributes.get("job.name") == job and "job.outcome" in span.attributes]
    return sorted(found, key=lambda span: span.start)


def outcomes(sink: OtlpSink, job: str) -> dict[str, int]:
    """Executions by outcome, as the last export of each process has them."""
    latest = {
        (point.resource["service.instance.id"], point.attributes["job.outcome"]): point.value
        for point in sink.points
        if point.name == "job.executions" and point.attributes["job.name"] == job
    }
    summed: Counter[str] = Counter()
    for (_, outcome), value in latest.items():
        summed[outcome] += int(value)
    return {outcome: number for outcome, number in summed.items() if number}


def gauge(sink: OtlpSink, name: str, **labels: str) -> list[float]:
    wanted = {key.replace("__", "."): value for key, value in labels.items()}
    return [p.value for p in sink.points if p.name == name and wanted.items() <= p.attributes.items()]


def run(programs: Programs, source: str, **environment: str) -> str:
    ran = programs.run(START + source, **environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_every_run_is_a_job_with_the_wait_from_its_wanted_time(programs: Programs, sink: OtlpSink) -> None:
    programs.write("jobs", """
import time
def report(number):
    time.sleep(0.05)
    return number
def fail():
    raise ZeroDivisionError("on purpose")
""")  # fmt: skip
    # The scheduler is made, and has its jobs, before telemetry starts.
    run(
        programs,
        """
import jobs
scheduler = BackgroundScheduler()
scheduler.add_job(jobs.report, "interval", seconds=1, args=[1])
scheduler.add_job(jobs.report, "cron", second="*", args=[2], name="by cron")
scheduler.add_job(jobs.report, args=[3], name="by date", misfire_grace_time=60)
scheduler.add_job(jobs.fail, args=[], misfire_grace_time=60)
configure()
scheduler.start()
time.sleep(2.2)
scheduler.shutdown()
""",
    )
    by_trigger = {
        name: {run.attributes["job.trigger"] for run in runs(sink, name)}
        for name in ("jobs.report", "by cron", "by date", "jobs.fail")
    }
    assert by_trigger == {
        "jobs.report": {"schedule"}, "by cron": {"cron"}, "by date": {"manual"}, "jobs.fail": {"manual"},
    }  # fmt: skip
    for span in [*runs(sink, "jobs.report"), *runs(sink, "by cron"), *runs(sink, "by date")]:
        wanted = span.attributes["job.id"].partition("@")[2]
        assert span.kind == "INTERNAL"
        assert span.name == span.attributes["job.name"]
        assert span.attributes["job.outcome"] == "success"
        assert span.parent_id in (None, "")
        wait = span.start - datetime.fromisoformat(wanted).timestamp()
        assert span.attributes["job.wait.duration"] == pytest.approx(wait, abs=0.05)
    assert len(runs(sink, "jobs.report")) >= 2
    assert outcomes(sink, "jobs.report") == {"success": len(runs(sink, "jobs.report"))}
    (failed,) = runs(sink, "jobs.fail")
    assert (failed.status, failed.attributes["error.type"]) == ("ERROR", "ZeroDivisionError")
    assert outcomes(sink, "jobs.fail") == {"failure": 1}
    assert gauge(sink, "job.worker.slots")[-1] == 10
    beat = gauge(sink, "job.worker.heartbeat.time", source="thread")[-1]
    assert beat == pytest.approx(time.time(), abs=30)


def test_runs_that_were_not_are_counted_as_missed_or_skipped(programs: Programs, sink: OtlpSink) -> None:
    run(
        programs,
        """
import threading
configure()
def late(): pass
def busy(): time.sleep(2.5)
def folded(): pass
scheduler = BackgroundScheduler(job_defaults={"misfire_grace_time": 5})
scheduler.start(paused=True)
long_ago = datetime.now(UTC) - timedelta(seconds=60)
scheduler.add_job(late, "date", run_date=long_ago)
scheduler.add_job(busy, "interval", seconds=1)
job = scheduler.add_job(folded, "interval", seconds=10, start_date=long_ago, next_run_time=long_ago)
scheduler.resume()
time.sleep(3)
scheduler.shutdown()
""",
    )
    assert outcomes(sink, "late") == {"missed": 1}
    assert outcomes(sink, "busy")["skipped"] >= 1
    assert outcomes(sink, "busy")["success"] == 1
    # Seven times were due, the one that ran stood for six others.
    assert outcomes(sink, "folded") == {"skipped": 6, "success": 1}
    events = Counter((record.event_name, record.attributes["job.name"]) for record in sink.logs if record.event_name)
    assert events["job.missed", "late"] == 1
    assert events["job.skipped", "folded"] == 6
    assert not runs(sink, "late")


def test_on_a_loop_runs_do_not_belong_to_whoever_spoke_to_the_scheduler(programs: Programs, sink: OtlpSink) -> None:
    run(
        programs,
        """
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from opentelemetry import trace
configure()
async def coroutine():
    await asyncio.sleep(0.01)
    trace.get_tracer("t").start_span("inside").end()
def function(): pass
async def endless(): await asyncio.sleep(60)
async def main():
    scheduler = AsyncIOScheduler()
    scheduler.start()
    with trace.get_tracer("web").start_as_current_span("request"):
        scheduler.add_job(coroutine, "interval", seconds=1, next_run_time=datetime.now(UTC), misfire_grace_time=60)
        scheduler.add_job(function, misfire_grace_time=60)
        scheduler.add_job(endless, misfire_grace_time=60)
    await asyncio.sleep(2.5)
    scheduler.shutdown()
    await asyncio.sleep(0.2)
asyncio.run(main())
""",
    )
    (request,) = [span for span in sink.spans if span.name == "request"]
    found = [span for name in ("coroutine", "function", "endless") for span in runs(sink, name)]
    assert len(runs(sink, "coroutine")) >= 2
    assert len({span.trace_id for span in found} | {request.trace_id}) == len(found) + 1
    inside = {span.parent_id for span in sink.spans if span.name == "inside"}
    assert inside == {span.span_id for span in runs(sink, "coroutine")}
    assert [span.attributes["job.outcome"] for span in runs(sink, "endless")] == ["revoked"]
    beats = gauge(sink, "job.worker.heartbeat.time", source="loop")
    assert len(set(beats)) >= 2
    # What it may run at a time: the repeated job once, and what was for now and has not ended.
    assert max(gauge(sink, "job.worker.slots")) in (2, 3)


def test_a_blocked_loop_and_a_stuck_thread_show_in_their_signs_of_life(programs: Programs, sink: OtlpSink) -> None:
    process = programs.start(sys.executable, "-c", START + """
from apscheduler.schedulers.asyncio import AsyncIOScheduler
configure()
async def main():
    scheduler = AsyncIOScheduler()
    scheduler.start()
    await asyncio.sleep(1.5)
    time.sleep(60)
asyncio.run(main())
""")  # fmt: skip
    sink.wait_for(lambda s: gauge(s, "job.worker.heartbeat.time", source="loop"), 30)

    def age() -> float:
        return time.time() - gauge(sink, "job.worker.heartbeat.time", source="loop")[-1]

    eventually(lambda: age() > 4 and len(gauge(sink, "otel_kit.process.up")) > 6, 30)
    # The process itself lives, and says so.
    assert time.time() - max(point.time for point in sink.points) < 3
    process.kill()


def test_a_store_that_cannot_be_read_stops_the_heartbeat_and_is_said_once(programs: Programs, sink: OtlpSink) -> None:
    process = programs.start(sys.executable, "-c", START + """
from apscheduler.jobstores.memory import MemoryJobStore
configure()
class Broken(MemoryJobStore):
    def get_due_jobs(self, now):
        if time.monotonic() > broken_from:
            raise ConnectionError("no database")
        return super().get_due_jobs(now)
broken_from = time.monotonic() + 1.5
def work(): pass
scheduler = BackgroundScheduler(jobstores={"default": Broken()}, jobstore_retry_interval=0.2)
scheduler.add_job(work, "interval", seconds=0.5)
scheduler.start()
time.sleep(60)
""")  # fmt: skip

    def age() -> float:
        beats = gauge(sink, "job.worker.heartbeat.time", source="thread")
        return time.time() - beats[-1] if beats else 0.0

    eventually(lambda: age() > 3, 30)
    told = [record for record in sink.logs if "cannot be read" in str(record.body)]
    assert len(told) == 1
    assert "ConnectionError: no database" in str(told[0].body)
    process.kill()


def test_a_deadline_follows_what_is_scheduled(programs: Programs, sink: OtlpSink) -> None:
    run(
        programs,
        """
configure()
def nightly(): pass
def paused(): pass
def once(): pass
def jittery(): pass
def lenient(): pass
def both(): pass
scheduler = BackgroundScheduler(timezone="UTC", job_defaults={"misfire_grace_time": 1})
scheduler.add_job(nightly, "cron", hour=2)
scheduler.add_job(once, "date", run_date=datetime.now(UTC) + timedelta(hours=1))
scheduler.add_job(jittery, "interval", seconds=600, jitter=100)
scheduler.add_job(lenient, "interval", seconds=600, misfire_grace_time=50)
scheduler.add_job(both, "interval", seconds=900, id="slower")
scheduler.add_job(both, "interval", seconds=300, id="faster")
scheduler.add_job(paused, "interval", seconds=600, id="paused")
scheduler.start()
time.sleep(1)
scheduler.pause_job("paused")
scheduler.remove_job("faster")
sys.stdout.write(str(time.time()))
""",
    )
    now = time.time()
    first = {
        name: gauge(sink, "job.deadline.time", job__name=name)
        for name in ("nightly", "once", "jittery", "lenient", "both", "paused")
    }
    midnight = now - now % 86_400
    two = midnight + 7200 if now % 86_400 < 7200 else midnight + 86_400 + 7200
    assert set(first["nightly"]) == {two + 3600 + 1}
    assert first["once"] == []
    # Half the time to the next run is what it may be late by, and the jitter and what the scheduler itself forgives.
    assert first["jittery"][-1] - now == pytest.approx(600 + 300 + 100 + 1, abs=30)
    assert first["lenient"][-1] - now == pytest.approx(600 + 300 + 50, abs=30)
    assert first["both"][-1] - first["both"][0] == pytest.approx(900 - 300, abs=5)
    # Nothing is awaited of a job that is paused: its last export has no deadline.
    last_export = max(point.time for point in sink.points)
    latest = [p.time for p in sink.points if p.name == "job.deadline.time" and p.attributes["job.name"] == "paused"]
    assert latest
    assert max(latest) < last_export


def test_a_decorated_function_is_one_job_under_its_own_name(programs: Programs, sink: OtlpSink) -> None:
    run(
        programs,
        """
configure()
class Known(Exception): pass
@otel_kit.job("import", max_runtime=30, grace=5, schedule=3600, expected=Known)
def load():
    with otel_kit.step("read"): otel_kit.progress(0.5, "half")
    raise Known
@otel_kit.job
async def plain(): pass
scheduler = BackgroundScheduler()
scheduler.add_job(load, name="by another name", misfire_grace_time=60)
scheduler.start()
time.sleep(1)
scheduler.shutdown()
from apscheduler.schedulers.asyncio import AsyncIOScheduler
async def main():
    scheduler = AsyncIOScheduler()
    scheduler.add_job(plain, misfire_grace_time=60)
    scheduler.start()
    await asyncio.sleep(1)
asyncio.run(main())
""",
    )
    (span,) = runs(sink, "import")
    assert (span.status, span.attributes["job.outcome"]) == ("UNSET", "failure")
    assert outcomes(sink, "import") == {"failure": 1}
    assert outcomes(sink, "by another name") == {}
    assert outcomes(sink, "plain") == {"success": 1}
    assert len(runs(sink, "plain")) == 1
    assert set(gauge(sink, "job.max_runtime", job__name="import")) == {30}
    (read,) = [each for each in sink.spans if each.name == "read"]
    assert read.parent_id == span.span_id
    assert next(name for name, _ in span.events) == "job.progress"
    assert [p.count for p in sink.points if p.name == "job.step.duration"][-1] == 1


def test_in_a_pool_of_processes_the_span_is_the_childs_and_the_count_the_parents(
    programs: Programs, sink: OtlpSink
) -> None:
    programs.write("jobs", """
import os, signal, time
import otel_kit
otel_kit.configure("scheduler")
def work(number): return number * 2
def fail(): raise KeyError("on purpose")
def die():
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
""")  # fmt: skip
    told = run(
        programs,
        """
import jobs
from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.pool import ProcessPoolExecutor
def main():
    returned = []
    scheduler = BackgroundScheduler(executors={"default": ProcessPoolExecutor(1)}, job_defaults={"misfire_grace_time": None})
    scheduler.add_listener(lambda event: returned.append(event.retval), EVENT_JOB_EXECUTED)
    scheduler.add_job(jobs.work, args=[21])
    scheduler.add_job(jobs.fail)
    scheduler.start()
    end = time.monotonic() + 40
    while not returned and time.monotonic() < end: time.sleep(0.1)
    executor = scheduler._lookup_executor("default")
    def wait_for_all():
        while executor._instances and time.monotonic() < end: time.sleep(0.05)
    wait_for_all()
    scheduler.add_job(jobs.die)
    while not executor._instances: time.sleep(0.01)
    wait_for_all()
    scheduler.shutdown()
    print(os.getpid(), returned)
if __name__ == "__main__":
    main()
""",
    )
    pid, returned = told.split(" ", 1)
    assert returned.strip() == "[42]"
    (work,), (failed,), (lost,) = runs(sink, "jobs.work"), runs(sink, "jobs.fail"), runs(sink, "jobs.die")
    assert work.resource["process.pid"] == failed.resource["process.pid"] != int(pid)
    assert lost.resource["process.pid"] == int(pid)
    assert (failed.status, failed.attributes["error.type"]) == ("ERROR", "KeyError")
    assert lost.attributes["job.outcome"] == "lost"
    assert outcomes(sink, "jobs.work") == {"success": 1}
    assert outcomes(sink, "jobs.fail") == {"failure": 1}
    assert outcomes(sink, "jobs.die") == {"lost": 1}
    # What the child said of the run that killed it carries the ids of the span that its parent made instead.
    said = {record.event_name: (record.trace_id, record.span_id) for record in sink.logs
            if record.attributes.get("job.name") == "jobs.die"}  # fmt: skip
    assert said["job.started"] == said["job.lost"] == (lost.trace_id, lost.span_id)
    waits = [point for point in sink.points if point.name == "job.wait.duration"]
    assert {p.attributes["job.name"]: p.count for p in waits} == {"jobs.work": 1, "jobs.fail": 1}
    assert max(gauge(sink, "job.active", job__name="jobs.die")) == 1
    assert gauge(sink, "job.active", job__name="jobs.die")[-1] == 0


def test_greenlets_run_jobs_too(programs: Programs, sink: OtlpSink) -> None:
    run(
        programs,
        """
from gevent import monkey
monkey.patch_all()
import gevent
from apscheduler.schedulers.gevent import GeventScheduler
configure()
def sleeps(number):
    gevent.sleep(0.2)
    logging.getLogger("jobs").warning("number %s", number)
scheduler = GeventScheduler()
for number in range(5):
    scheduler.add_job(sleeps, args=[number], misfire_grace_time=60)
scheduler.start()
gevent.sleep(1.5)
scheduler.shutdown()
""",
    )
    found = runs(sink, "sleeps")
    assert len(found) == 5
    assert len({span.trace_id for span in found}) == 5
    logged = {record.span_id for record in sink.logs if str(record.body).startswith("number")}
    assert logged == {span.span_id for span in found}
    assert outcomes(sink, "sleeps") == {"success": 5}


def test_the_polling_of_a_store_makes_no_spans_and_jobs_that_use_it_do(programs: Programs, sink: OtlpSink) -> None:
    programs.write("jobs", """
from sqlalchemy import text
def query():
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
""")  # fmt: skip
    run(
        programs,
        """
from sqlalchemy import create_engine, text
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
import jobs
configure()
engine = create_engine("sqlite:///jobs.db")
jobs.engine = engine
scheduler = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(engine=engine)})
scheduler.start()
scheduler.add_job(jobs.query, "interval", seconds=0.5, id="query", name="queries")
before = time.time()
time.sleep(2)
print(before)
scheduler.shutdown()
""",
    )
    found = {span.span_id for span in runs(sink, "queries")}
    assert found
    queries = [
        span
        for span in sink.spans
        if span.attributes.get("db.system.name") and "apscheduler_jobs" not in str(span.attributes)
    ]
    assert {span.parent_id for span in queries if "SELECT 1" in str(span.attributes)} == found
    polled = [
        span
        for span in sink.spans
        if "apscheduler_jobs" in str(span.attributes) and "next_run_time <=" in str(span.attributes)
    ]
    assert polled == []


def test_a_job_that_nobody_can_read_any_more_is_rejected_by_its_name(programs: Programs, sink: OtlpSink) -> None:
    programs.write("jobs", "def old(): pass\n")
    script = """
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
import jobs
configure()
scheduler = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore("sqlite:///jobs.db")})
scheduler.start(paused=PAUSED)
if PAUSED: scheduler.add_job(jobs.old, "interval", seconds=1, name="from yesterday")
else: time.sleep(2)
"""
    run(programs, script.replace("PAUSED", "True"))
    programs.write("jobs", "def new(): pass\n")
    run(programs, script.replace("PAUSED", "False"))
    assert outcomes(sink, "from yesterday") == {"rejected": 1}
    assert outcomes(sink, "unknown") == {}


def test_what_was_observed_is_as_before_once_it_is_not_any_more(programs: Programs) -> None:
    told = run(
        programs,
        """
from apscheduler.executors import asyncio as on_loop, base, debug, pool
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.job import Job
from otel_kit.integrations.apscheduler import APSchedulerInstrumentor
def all_of_it():
    return [
        base.run_job, on_loop.run_coroutine_job, pool.run_job, debug.run_job, BaseScheduler._process_jobs,
        BaseScheduler._real_add_job, BaseScheduler.modify_job, BaseScheduler._dispatch_event, base.BaseExecutor.submit_job,
        base.BaseExecutor._run_job_success, base.BaseExecutor._run_job_error, pool.ProcessPoolExecutor._do_submit_job,
        Job.__setstate__,
    ]
before = all_of_it()
otel_kit.configure("scheduler", instrument=False)
instrumentor = APSchedulerInstrumentor()
instrumentor.instrument()
changed = [one is not other for one, other in zip(before, all_of_it())]
scheduler = BackgroundScheduler()
scheduler.start()
scheduler.add_job(print, args=["ran"])
time.sleep(0.5)
instrumentor.uninstrument()
print(all(changed), all(one is other for one, other in zip(before, all_of_it())))
store = scheduler._jobstores["default"]
print(sorted(name for name in vars(store) if not name.startswith("_") and callable(vars(store)[name])))
scheduler.add_job(print, args=["ran again"])
time.sleep(0.5)
scheduler.shutdown()
""",
    )
    assert told.splitlines() == ["ran", "True True", "[]", "ran again"]


def test_a_run_of_a_dead_scheduler_is_lost_where_leases_are_kept(
    programs: Programs, sink: OtlpSink, redis_url: str
) -> None:
    environment = {"OTEL_KIT_LEASES": redis_url, "OTEL_KIT_LEASE_TTL": "2"}
    victim = programs.start(sys.executable, "-c", START + """
configure()
def endless(): time.sleep(60)
scheduler = BackgroundScheduler()
scheduler.add_job(endless, misfire_grace_time=60)
scheduler.start()
time.sleep(60)
""", **environment)  # fmt: skip
    sink.wait_for(lambda s: any(record.event_name == "job.started" for record in s.logs), 30)
    programs.start(sys.executable, "-c", START + """
configure()
def other(): pass
scheduler = BackgroundScheduler()
scheduler.add_job(other, "interval", seconds=1)
scheduler.start()
time.sleep(60)
""", **environment)  # fmt: skip
    sink.wait_for(lambda s: outcomes(s, "other"), 30)
    eventually(lambda: gauge(sink, "job.active", job__name="endless"), 15)
    victim.kill()
    sink.wait_for(lambda s: outcomes(s, "endless") == {"lost": 1} and runs(s, "endless"), 40)
    assert runs(sink, "endless")[0].attributes["job.outcome"] == "lost"


def test_what_a_scheduled_run_publishes_says_that_a_schedule_did_it(
    programs: Programs, sink: OtlpSink, redis_url: str
) -> None:
    run(programs, """
from celery import Celery
configure()
app = Celery("jobs", broker=os.environ["BROKER"])
@app.task(name="behind")
def behind(): pass
def publishes(): behind.delay()
scheduler = BackgroundScheduler()
scheduler.add_job(publishes, "interval", seconds=1)
scheduler.add_job(behind.delay, "interval", seconds=1, name="itself")
scheduler.start()
time.sleep(2.5)
scheduler.shutdown()
""", BROKER=redis_url)  # fmt: skip
    created = [record for record in sink.logs if record.event_name == "job.created"]
    assert len(created) >= 2
    assert {record.attributes["job.trigger"] for record in created} == {"schedule"}
    sends = [span for span in sink.spans if span.kind == "PRODUCER"]
    parents = {span.span_id for name in ("publishes", "itself") for span in runs(sink, name)}
    assert {span.parent_id for span in sends} == parents


def test_a_forked_child_does_not_speak_for_its_parents_scheduler(programs: Programs, sink: OtlpSink) -> None:
    run(
        programs,
        """
def work(): pass
configure()
scheduler = BackgroundScheduler()
scheduler.add_job(work, "interval", seconds=0.5, id="parents")
scheduler.start()
time.sleep(0.2)
child = os.fork()
if child == 0:
    own = BackgroundScheduler(executors={"default": {"type": "threadpool", "max_workers": 3}})
    own.add_job(work, "interval", seconds=0.5)
    own.start()
    time.sleep(2)
    own.shutdown()
    sys.exit()
os.waitpid(child, 0)
scheduler.shutdown()
""",
    )
    by_process: dict[str, set[float]] = {}
    for point in sink.points:
        if point.name == "job.worker.slots":
            by_process.setdefault(point.resource["service.instance.id"], set()).add(point.value)
    assert sorted(map(max, by_process.values())) == [3, 10]
    assert all(age < 2 for age in (p.time - p.value for p in sink.points if p.name == "job.worker.heartbeat.time"))


def test_jobs_that_run_once_leave_nothing_in_memory(programs: Programs) -> None:
    told = run(
        programs,
        """
configure()
def once(): pass
scheduler = BackgroundScheduler(job_defaults={"misfire_grace_time": None})
scheduler.start()
for number in range(200):
    scheduler.add_job(once, name=f"order {number}")
while scheduler.get_jobs(): time.sleep(0.05)
from otel_kit.integrations.apscheduler import scheduler as ours
(watched,) = ours._watched.values()
print(len(watched.instances), len(ours._timetable._wanted.get(scheduler, {})))
""",
    )
    assert told.split() == ["0", "0"]


def test_the_example_runs_as_its_page_says(programs: Programs, sink: OtlpSink) -> None:
    example = Path(__file__).parents[2] / "examples" / "apscheduler" / "housekeeping.py"
    process = programs.start(sys.executable, str(example))
    sink.wait_for(lambda s: runs(s, "sweep") and gauge(s, "job.deadline.time", job__name="exchange-rates"), 40)
    assert runs(sink, "sweep")[0].attributes["job.trigger"] == "schedule"
    programs.stop(process)
