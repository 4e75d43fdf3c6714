"""Celery, in three of its pools."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping, Sequence

import redis

from tests.frameworks.adapter import Framework


class Celery(Framework):
    """Workers with one kind of pool."""

    app = "celery"

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self.name = f"celery-{pool}"
        self.title = f"Celery ({pool})"
        self.slots = 2
        # A full gevent pool makes the consumer itself wait, with the next message in its hands.
        self.prefetch = 1 if pool == "gevent" else 0
        # In a pool of processes the main one survives what kills a job; in the others the job is in it.
        self.watchers = pool != "prefork"

    def environment(self) -> Mapping[str, str]:
        # Without a hub Celery looks for messages every two seconds once it has as many as it may have: with few, a thousand
        # take it ten minutes.
        return {"PREFETCH": "50"} if self.pool == "gevent" else {}

    def command(self) -> Sequence[str]:
        return self._worker(self.queue, self.pool)

    def _worker(self, queue: str, pool: str) -> Sequence[str]:
        # A name of its own for each: workers of one name answer for each other.
        name = f"{uuid.uuid4().hex[:8]}@%h"
        return [
            self.python(), "-m", "celery", "-A", "app", "worker", "--loglevel", "info", "--hostname", name, "--queues", queue,
            "--pool", pool, "--concurrency", str(self.slots), "-O", "fair", "--without-mingle", "--without-gossip",
        ]  # fmt: skip

    def companions(self) -> Sequence[Sequence[str]]:
        # Beat inside a worker of its own, with a queue of its own: what it sends is in nobody's way.
        return [(*self._worker("periodic", "threads"), "--beat", "--schedule", "beat-schedule")]

    def ready(self, output: str) -> bool:
        return " ready." in output

    def companion_ready(self, output: str) -> bool:
        return self.ready(output) and "beat: Starting" in output

    def poison(self, broker: str) -> None:
        """A task's message whose body is no JSON."""
        message = {
            "body": base64.b64encode(b"{no json").decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "task": "fail", "id": str(uuid.uuid4()), "retries": 0},
            "properties": {
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": self.queue},
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
        with redis.Redis.from_url(broker) as client:
            client.lpush(self.queue, json.dumps(message))


FRAMEWORKS = [Celery(pool) for pool in ("prefork", "threads", "gevent")]
