"""How many jobs RQ has in each state, read in one round trip whose cost does not grow with the queue.

RQ's own counts are not asked: ``registry.count`` cleans the registry up first, moves abandoned jobs and calls the application's
callbacks, in whatever process happens to look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from otel_kit.integrations.redis_keys import own_client
from otel_kit.integrations.rq import messages
from otel_kit.jobs.queues import QueueState

# Reads only. The job's key is made from the id at the queue's head, which is why this is a script and no pipeline.
_READ: Final = """
local head = redis.call('LINDEX', KEYS[1], 0)
local at = head and redis.call('HGET', ARGV[1] .. head, 'enqueued_at') or ''
local counts = {at or ''}
for i = 1, 2 do counts[#counts + 1] = redis.call('LLEN', KEYS[i]) end
for i = 3, #KEYS do counts[#counts + 1] = redis.call('ZCARD', KEYS[i]) end
return counts
"""


class RQQueue:
    """One queue's state.

    Args:
        name: The queue's name.
        client: Makes a synchronous client of redis-py, of our own.
        key: The queue's own key; left out, as RQ makes it from the name.
        job_prefix: What the keys of its jobs begin with; left out, RQ's.
    """

    system = messages.SYSTEM

    def __init__(
        self, name: str, client: Callable[[], Any], *, key: str | None = None, job_prefix: str | None = None
    ) -> None:
        from rq import Queue
        from rq.job import Job
        from rq.registry import DeferredJobRegistry, FailedJobRegistry, ScheduledJobRegistry, StartedJobRegistry

        self.name = name
        own = key or f"{Queue.redis_queue_namespace_prefix}{name}"
        registries: list[Any] = [StartedJobRegistry, ScheduledJobRegistry, DeferredJobRegistry, FailedJobRegistry]
        self._keys = [own, f"{own}:intermediate", *(kind.key_template.format(name) for kind in registries)]
        # Dependents on their way into the queue, for a moment, or until RQ's maintenance finds them. RQ 2 has none.
        self._keys.append(DeferredJobRegistry.key_template.replace("deferred", "ready").format(name))
        self._job_prefix = job_prefix or Job.redis_job_namespace_prefix
        self._connect = client
        self._client: Any = None

    def read(self) -> QueueState:
        """The state now. Deferred jobs count as scheduled: both wait for something else than a worker.

        A job that a worker has taken is in its intermediate queue until the horse begins, and in the registry of started
        jobs then; for the few milliseconds in between it is in both.
        """
        if self._client is None:
            self._client = self._connect()
        at, ready, intermediate, started, scheduled, deferred, failed, moving = self._client.eval(
            _READ, len(self._keys), *self._keys, self._job_prefix
        )
        return QueueState(
            ready=ready,
            scheduled=scheduled + deferred + moving,
            reserved=started + intermediate,
            dead=failed,
            oldest_ready_at=_unix(at) if ready else None,
        )


def _unix(text: bytes | str) -> float | None:
    shown = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    try:
        at = datetime.fromisoformat(shown)
    except ValueError:
        return None
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def from_url(url: str, queues: Sequence[str]) -> list[RQQueue]:
    """Sources for these queues of the Redis at ``url``, for a process that is no worker."""
    client = own_client(url)
    return [RQQueue(name, lambda: client) for name in queues]
