"""APScheduler 3, with threads and with processes, and a store in Redis that producers add to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import redis

from tests.frameworks.adapter import Framework

_LACKS = {
    "retry": "APScheduler has no retries",
    "priority": "APScheduler has no priorities",
    "dead_broker": "Adding a job is no publish: the store's own errors reach the caller as ever",
    "nested": "A job that is added for later begins a trace of its own: APScheduler's jobs carry no headers",
    "depth": "There is no queue: what is due is started at once",
}


class APScheduler(Framework):
    """One scheduler."""

    app = "apscheduler"
    system = ""
    queue = ""
    slots = 2

    def __init__(self, pool: str, lacks: Mapping[str, str]) -> None:
        self.pool = pool
        self.name = f"apscheduler-{pool}"
        self.title = f"APScheduler ({pool})"
        self.lacks = lacks

    def command(self) -> Sequence[str]:
        # As a module that is imported: a pool's process imports it again for its functions.
        return [self.python(), "-c", f"import app; app.work({self.pool!r})"]

    def ready(self, output: str) -> bool:
        return "ready" in output

    def poison(self, broker: str) -> None:
        """A job that is no pickle."""
        with redis.Redis.from_url(broker) as client:
            client.hset("apscheduler.jobs", "poison", b"no pickle")
            client.zadd("apscheduler.run_times", {"poison": time.time()})


FRAMEWORKS = [
    APScheduler(
        "threads",
        {**_LACKS, "killed": "Its threads die with it; with OTEL_KIT_LEASES=redis://... any other process sees it"},
    ),
    APScheduler("processes", _LACKS),
]
