"""Dramatiq in the common suite: a worker process with two threads, started by its command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import redis

from tests.frameworks.adapter import Framework


class Dramatiq(Framework):
    """Redis for a broker, and a scheduler of APScheduler's beside it: Dramatiq has none of its own."""

    name = "dramatiq"
    title = "Dramatiq"
    app = "dramatiq"
    slots = 2
    # The threads and what watches over them are one process; its parent only ends the others when one dies.
    watchers = True
    lacks = {  # noqa: RUF012 - read only
        "priority": "its Redis broker has no priorities of messages; those of actors order what a worker has fetched already",
    }

    def environment(self) -> Mapping[str, str]:
        # One message for each thread: what waits is in the queue and not in a worker's memory.
        return {"dramatiq_queue_prefetch": str(self.slots)}

    def _worker(self, queue: str, threads: int) -> Sequence[str]:
        options = ("--queues", queue, "--processes", "1", "--threads", str(threads))
        return [self.python(), "-m", "dramatiq", "app", *options]

    def command(self) -> Sequence[str]:
        return self._worker(self.queue, self.slots)

    def companions(self) -> Sequence[Sequence[str]]:
        return [self._worker("periodic", 1), [self.python(), "-c", "import app; app.schedule()"]]

    def ready(self, output: str) -> bool:
        return "Worker process is ready" in output

    def companion_ready(self, output: str) -> bool:
        return "is ready" in output

    def poison(self, broker: str) -> None:
        """An id whose message is no JSON."""
        with redis.Redis.from_url(broker) as client:
            client.hset(f"dramatiq:{self.queue}.msgs", "poison", b"{no json")
            client.rpush(f"dramatiq:{self.queue}", "poison")


FRAMEWORKS = [Dramatiq()]
