"""How much waits in a queue that Dramatiq keeps in Redis, and for how long.

Its keys, from ``dramatiq/brokers/redis/dispatch.lua`` (the same in 1.17 and 2.2), each after ``{namespace}:``: a list ``Q``
of ids that wait, oldest first; a hash ``Q.msgs`` of all messages that are not finished, also of those that a worker has
taken; the same two for ``Q.DQ``, the delayed ones, which workers hold in memory until they are due; a sorted set ``Q.XQ``
of dead letters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit.integrations.dramatiq.messages import DUE, enqueued_at, headers_of, queue_of, system
from otel_kit.jobs.delivery import delivered, unix_time
from otel_kit.jobs.leases import keep
from otel_kit.jobs.queues import QueueState, watch_queue

#: What Dramatiq's Redis broker puts before its keys, unless it is told otherwise.
NAMESPACE: Final = "dramatiq"

# Six commands, none of which grows with the queue. Of a large message only the end comes: its time stands there.
_READ: Final = """
local ready, taken = redis.call('LLEN', KEYS[1]), redis.call('HLEN', KEYS[2])
local scheduled, dead = redis.call('HLEN', KEYS[3]), redis.call('ZCARD', KEYS[4])
local oldest = ''
local id = redis.call('LINDEX', KEYS[1], 0)
if id and redis.call('HSTRLEN', KEYS[2], id) <= 1048576 then
  oldest = redis.call('HGET', KEYS[2], id) or ''
  if #oldest > 16384 then oldest = string.sub(oldest, -1024) end
end
return {ready, taken, scheduled, dead, oldest}
"""
_TIMESTAMP: Final = re.compile(rb'"message_timestamp": ?(\d{10,14})\}$')


@dataclass(frozen=True, slots=True)
class RedisQueue:
    """One queue of a Redis broker.

    Attributes:
        client: A client of our own: `otel_kit.integrations.redis_keys`.
        name: The queue's name, as its actors declare it.
        namespace: The broker's.
    """

    client: Any
    name: str
    namespace: str = NAMESPACE

    @property
    def system(self) -> str:
        """The broker."""
        return "redis"

    def read(self) -> QueueState:
        """The queue as it is now, in one round trip that changes nothing."""
        queue = f"{self.namespace}:{self.name}"
        keys = (queue, f"{queue}.msgs", f"{queue}.DQ.msgs", f"{queue}.XQ")
        with suppress_instrumentation():
            ready, known, scheduled, dead, oldest = self.client.eval(_READ, len(keys), *keys)
        return QueueState(
            ready=ready,
            scheduled=scheduled,
            reserved=max(0, known - ready),
            dead=dead,
            oldest_ready_at=ready_at(oldest) if ready else None,
        )


def ready_at(encoded: bytes) -> float | None:
    """Since when a message, as it stands in Redis, has been ready (unix seconds).

    None where it cannot be told: messages that are not encoded as JSON are not unpacked here, since that may run code.
    """
    try:
        message = json.loads(encoded)
        options = message["options"]
        headers = headers_of(options)
        due = headers.get(DUE)
        made = enqueued_at(options, message.get("message_timestamp"))
        return delivered("", "", "", "", headers, start_at=due, enqueued_at=made).ready_at
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        end = _TIMESTAMP.search(encoded)
        return unix_time(int(end[1]) / 1000) if end else None


def from_url(url: str, queues: Sequence[str]) -> list[RedisQueue]:
    """The queues of a Redis broker.

    Args:
        url: As the application names its Redis.
        queues: Their names; ``namespace:name`` where the broker has another namespace than ``dramatiq``.
    """
    from otel_kit.integrations.redis_keys import own_client

    client = own_client(url)
    # No queue of Dramatiq's may have a colon in its name.
    parts = [given.rpartition(":") for given in queues]
    return [RedisQueue(client, queue_of(name), namespace or NAMESPACE) for namespace, _colon, name in parts]


def watch(broker: Any, names: Sequence[str]) -> None:
    """Report these queues from this worker, and the runs of workers that have died.

    Of other brokers than Redis only the latter, where OTEL_KIT_LEASES names a Redis for it.
    """
    from otel_kit.integrations.redis_leases import leases_for

    if system(broker) != "redis":
        keep(leases_for(None), framework="dramatiq")
        return
    from otel_kit.integrations.redis_keys import RedisLease, like

    keep(leases_for(lambda: like(broker.client)), framework="dramatiq")
    own = like(broker.client)
    for name in names:
        watch_queue(RedisQueue(own, name, broker.namespace), RedisLease(own))
