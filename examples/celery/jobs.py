"""Parcels: the jobs. Nothing here knows of telemetry."""

from __future__ import annotations

import os
import random
import time
from typing import Any

from celery import Celery
from celery.schedules import crontab

app = Celery("parcels", broker=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    beat_schedule={
        "count": {"task": "count", "schedule": 10.0},
        "report": {"task": "report", "schedule": crontab(minute="*")},
    },
)


class UnknownAddressError(Exception):
    """Happens every day and is nobody's fault."""


@app.task(name="weigh", autoretry_for=(ConnectionError,), retry_backoff=True, max_retries=5)
def weigh(parcel: int) -> int:
    """Ask the scales, which are busy now and then."""
    time.sleep(random.uniform(0.05, 0.3))
    if random.random() < 0.2:
        raise ConnectionError("the scales do not answer")
    return parcel


@app.task(name="deliver", throws=(UnknownAddressError,), time_limit=60, acks_late=True, otel_kit_recover=True)
def deliver(parcel: int) -> None:
    """Bring it there. A delivery that dies with its worker may be made again."""
    time.sleep(random.uniform(0.2, 1.0))
    if random.random() < 0.1:
        raise UnknownAddressError(f"parcel {parcel}")


@app.task(name="count", expires=10)
def count() -> None:
    """Every ten seconds."""


@app.task(name="report", bind=True)
def report(self: Any) -> None:
    """Every minute: a chain for a parcel of its own."""
    (weigh.s(self.request.retries) | deliver.s()).delay()
