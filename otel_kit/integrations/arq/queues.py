"""How many jobs wait in an arq queue, and since when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit.integrations.redis_keys import own_client
from otel_kit.jobs.queues import QueueState

#: So many of the oldest due jobs are asked whether a worker has them. Workers take the oldest first, so those that run are
#: among them unless more run at once than that.
_LOOKED_AT: Final = 1000
#: Seconds; a score further back is no time: arq sets 1 where a job that was put off is aborted.
_OLDEST: Final = 30 * 86_400.0

# A job stays in the sorted set until it is done; that it runs is told by a key of its own. One script, so that a job which
# begins or ends in between is seen once, and one round trip.
_READ: Final = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'WITHSCORES', 'LIMIT', 0, ARGV[3])
local reserved, oldest = 0, ''
for i = 1, #due, 2 do
  if redis.call('EXISTS', 'arq:in-progress:' .. due[i]) == 1 then
    reserved = reserved + 1
  elseif oldest == '' and tonumber(due[i + 1]) > tonumber(ARGV[2]) then
    oldest = due[i + 1]
  end
end
return {redis.call('ZCOUNT', KEYS[1], '-inf', ARGV[1]), redis.call('ZCARD', KEYS[1]), reserved, oldest}
"""


class ArqQueue:
    """One queue.

    Args:
        client: A synchronous Redis client of our own.
        name: The queue's name, which is its key.
    """

    system = "redis"

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self.name = name

    def read(self) -> QueueState:
        """Look, in one round trip. arq keeps no dead letters: their number is 0."""
        now = time.time()
        with suppress_instrumentation():
            due, all_, reserved, oldest = self._client.eval(
                _READ, 1, self.name, int(now * 1000), int((now - _OLDEST) * 1000), _LOOKED_AT
            )
        return QueueState(
            ready=due - reserved,
            scheduled=all_ - due,
            reserved=reserved,
            dead=0,
            oldest_ready_at=float(oldest) / 1000 if oldest else None,
        )


def from_url(url: str, queues: Sequence[str]) -> list[ArqQueue]:
    """The queues of this Redis.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        queues: Their names; arq's default is ``arq:queue``.
    """
    client = own_client(url)
    return [ArqQueue(client, name) for name in queues]
