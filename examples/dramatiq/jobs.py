"""What is done with a photo. No line of telemetry in here."""

from __future__ import annotations

import logging
import os
import random
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

log = logging.getLogger(__name__)
dramatiq.set_broker(RedisBroker(url=os.environ.get("REDIS_URL", "redis://localhost:6379/0")))


class NotAPhotoError(Exception):
    """Somebody has uploaded something else; that is no fault of ours."""


@dramatiq.actor(max_retries=3, min_backoff=200, max_backoff=2000, throws=(NotAPhotoError,), time_limit=10_000)
def resize(photo: str) -> str:
    """Make a small one of it; now and then the store does not answer."""
    if not photo.endswith(".jpg"):
        raise NotAPhotoError(photo)
    time.sleep(random.uniform(0.05, 0.2))
    if random.random() < 0.2:
        raise ConnectionError("the store does not answer")
    return photo.replace(".jpg", "-small.jpg")


@dramatiq.actor
def show(photo: str) -> None:
    """Put it on the page."""
    log.info("%s is on the page", photo)


@dramatiq.actor
def forget(photo: str) -> None:
    """Throw the original away, some time later."""
    log.info("%s is gone", photo)
