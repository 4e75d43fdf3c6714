"""The suite's jobs in Celery. Named like the framework here, it is copied to ``app.py`` before it runs."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import Any

import otel_kit

otel_kit.configure()

from celery import Celery  # noqa: E402 - telemetry first

app = Celery("suite", broker=os.environ["BROKER"])
app.conf.update(
    task_default_queue="suite",
    task_ignore_result=True,
    # One message for each slot, kept in the broker until it is done: what waits is in the queue and nowhere else.
    task_acks_late=True,
    worker_prefetch_multiplier=int(os.environ.get("PREFETCH", "1")),
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)
# The suite reads the jobs' own records: Celery's sentence after each job is none of them.
logging.getLogger("celery.app.trace").setLevel(logging.WARNING)
if os.environ.get("PERIODIC") == "1":
    app.conf.beat_schedule = {"every-second": {"task": "periodic", "schedule": 1.0, "options": {"queue": "periodic"}}}


@app.task(name="succeed")
def succeed(number: int = 0) -> None:
    pass


@app.task(name="fail")
def fail() -> None:
    raise ZeroDivisionError("on purpose")


@app.task(name="retry_once", bind=True, max_retries=2)
def retry_once(self: Any) -> None:
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("not yet"), countdown=0.3)


@app.task(name="slow")
def slow(seconds: float) -> None:
    time.sleep(seconds)


@app.task(name="die")
def die() -> None:
    time.sleep(1)  # in the middle of it: its start is known by then
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="periodic")
def periodic() -> None:
    pass


@app.task(name="nested")
def nested() -> None:
    succeed.delay(1)


def publish(name: str, *arguments: object, delay: float | None = None, priority: int | None = None) -> None:
    """Hand a job to the broker by its name."""
    app.send_task(name, arguments, countdown=delay, priority=priority)
