"""The suite's jobs in APScheduler, in a store that a producer reaches. It is copied to ``app.py`` before it runs."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import otel_kit

otel_kit.configure()

from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor  # noqa: E402 - telemetry first
from apscheduler.jobstores.redis import RedisJobStore  # noqa: E402
from apscheduler.schedulers.background import BackgroundScheduler  # noqa: E402


def do_succeed(number: int = 0) -> None:
    pass


def do_fail() -> None:
    raise ZeroDivisionError("on purpose")


def do_slow(seconds: float) -> None:
    time.sleep(seconds)


def do_die() -> None:
    time.sleep(1)  # in the middle of it: its start is known by then
    os.kill(os.getpid(), signal.SIGKILL)


def do_periodic() -> None:
    pass


def make(executor: Any = None) -> Any:
    """A scheduler on the suite's store. One that is late runs all the same."""
    url = urlsplit(os.environ["BROKER"])
    store = RedisJobStore(host=url.hostname, port=url.port, db=int(url.path.strip("/")))
    executors = {"default": executor} if executor is not None else {}
    return BackgroundScheduler(
        jobstores={"default": store}, executors=executors, job_defaults={"misfire_grace_time": None}
    )


producer: Any = None


def publish(name: str, *arguments: object, delay: float | None = None, priority: int | None = None) -> None:
    """Add a job for now, or for later, by its name."""
    global producer
    if producer is None:
        producer = make()
        producer.start(paused=True)
    at = datetime.now(UTC) + timedelta(seconds=delay or 0)
    if f"do_{name}" in globals():
        producer.add_job(f"app:do_{name}", "date", args=arguments, name=name, run_date=at)
    else:
        # As a producer of tomorrow's version would, whose functions this worker does not have yet.
        job = producer.add_job("app:do_succeed", "date", name=name, run_date=at + timedelta(hours=1))
        state = {**job.__getstate__(), "func": f"app:{name}", "next_run_time": at}
        store = producer._jobstores["default"]
        store.redis.hset(store.jobs_key, job.id, pickle.dumps(state))
        store.redis.zadd(store.run_times_key, {job.id: at.timestamp()})


def work(pool: str) -> None:
    """Run what is due until somebody stops it."""
    executor = ProcessPoolExecutor(2) if pool == "processes" else ThreadPoolExecutor(2)
    scheduler = make(executor)
    if os.environ.get("PERIODIC") == "1":
        # None is skipped while the first waits for a process to start, or on a busy machine.
        patient = {"max_instances": 20, "coalesce": False}
        scheduler.add_job(
            "app:do_periodic", "interval", seconds=1, id="periodic", name="periodic", replace_existing=True, **patient
        )
    scheduler.start()
    if pool == "processes":
        # The first run would wait for Python to start.
        for future in [executor._pool.submit(time.sleep, 0.2) for _ in range(2)]:
            future.result()
    print("ready", flush=True)
    while True:
        # APScheduler looks at a store when it knows of something; others may have put something there.
        scheduler.wakeup()
        threading.Event().wait(0.02)


if __name__ == "__main__":
    work(sys.argv[1])
