"""What we keep in a broker's Redis, and how we talk to it: on a connection of our own, quietly, and never for long."""

from __future__ import annotations

from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

#: Seconds that our own threads wait for Redis.
TIMEOUT: Final = 2.0

# Takes the key, or keeps it where it is ours already. One script, so that no other can come between.
_HOLD: Final = """
local holder = redis.call('GET', KEYS[1])
if not holder then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 1
elseif holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1
end
return 0
"""


def own_client(url: str, **options: Any) -> Any:
    """A client of our own, for our own threads.

    Args:
        url: As the application names its Redis (``redis://``, ``rediss://``, ``unix://``).
        **options: More for redis-py; what it says of timeouts wins over ours.
    """
    import redis

    return redis.Redis.from_url(
        url, **{"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "max_connections": 4, **options}
    )


def like(client: Any) -> Any:
    """A client of our own to the same Redis as the application's synchronous ``client`` talks to."""
    import redis

    pool = client.connection_pool
    options = {**pool.connection_kwargs, "socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
    options.pop("decode_responses", None)
    if "connection_pool" in options or type(pool).__name__ == "SentinelConnectionPool":
        # The address comes from the sentinels: only the pool itself knows how to ask them.
        return redis.Redis(connection_pool=pool)
    return redis.Redis(connection_pool=redis.ConnectionPool(pool.connection_class, 4, **options))


class RedisLease:
    """Which process reports a queue, by one key with a time to live.

    Args:
        client: A client of our own, see `own_client` and `like`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def hold(self, key: str, token: str, ttl: float) -> bool:
        """Take or keep ``key`` for ``ttl`` seconds in the name of ``token``; whether that worked."""
        with suppress_instrumentation():
            return bool(self._client.eval(_HOLD, 1, key, token, max(1, int(ttl * 1000))))
