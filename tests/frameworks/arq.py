"""arq's adapter. Its programs run in an environment of their own."""

from __future__ import annotations

from collections.abc import Sequence

import redis

from tests.frameworks import arq_environment
from tests.frameworks.adapter import Framework


class Arq(Framework):
    """arq's worker, which runs its jobs side by side in one event loop."""

    name = "arq"
    title = "arq"
    app = "arq"
    slots = 4
    watchers = True
    lacks = {"priority": "arq has no priorities: jobs start in the order of the times at which they were wanted."}  # noqa: RUF012

    def python(self) -> str:
        return arq_environment.python()

    def command(self) -> Sequence[str]:
        return (self.python(), "-m", "arq", "app.WorkerSettings")

    def companions(self) -> Sequence[Sequence[str]]:
        return ((self.python(), "-m", "arq", "app.SchedulerSettings"),)

    def companion_ready(self, output: str) -> bool:
        return self.ready(output)

    def ready(self, output: str) -> bool:
        return "the worker is ready" in output

    def poison(self, broker: str) -> None:
        with redis.Redis.from_url(broker) as client:
            client.set("arq:job:poison", b"\xff this is no pickle")
            client.zadd(self.queue, {"poison": 1000})


FRAMEWORKS = [Arq()]
