"""RQ in the common suite: with a work horse for each job, and in the worker's own process."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence

import redis

from tests.frameworks.adapter import Framework


class RQ(Framework):
    """The worker that most people run: a fork for each job."""

    name = "rq"
    title = "RQ"
    app = "rq"
    kind = "fork"
    #: RQ puts a retry on record before the run that failed is over, by as much as its Redis takes.
    backoff = None

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", f"import app; app.work({self.kind!r})"]

    def companions(self) -> Sequence[Sequence[str]]:
        # The periodic jobs have a queue and a worker to themselves: counts of the suite's queue are of what a test published.
        programs = ("app.cron()", f"app.work({self.kind!r}, app.PERIODIC)")
        return [[sys.executable, "-c", f"import app; {program}"] for program in programs]

    def ready(self, output: str) -> bool:
        return "worker is ready" in output

    def companion_ready(self, output: str) -> bool:
        return "is ready" in output

    def poison(self, broker: str) -> None:
        with redis.Redis.from_url(broker) as client:
            times = dict.fromkeys(("created_at", "enqueued_at"), "2026-01-01T00:00:00.000000Z")
            job = {
                "data": zlib.compress(b"no pickle"),
                "origin": self.queue,
                "status": "queued",
                "timeout": "180",
                **times,
            }
            client.hset("rq:job:poison", mapping=job)
            client.rpush(f"rq:queue:{self.queue}", "poison")


class SimpleRQ(RQ):
    """One process for the worker and all its jobs: what kills the one kills the other."""

    name = "rq-simple"
    title = "RQ (SimpleWorker)"
    kind = "simple"
    watchers = True


FRAMEWORKS = [RQ(), SimpleRQ()]
