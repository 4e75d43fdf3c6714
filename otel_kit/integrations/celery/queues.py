"""How many messages wait in Celery's queues, and for how long: in Redis in detail, elsewhere by a passive declaration."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit import catalogue
from otel_kit.integrations.celery.messages import system_of, when
from otel_kit.integrations.redis_keys import TIMEOUT, RedisLease, like
from otel_kit.jobs.delivery import unix_time
from otel_kit.jobs.queues import QueueSource, QueueState, watch_queue

#: Unacknowledged messages that are looked at in one reading: of more, so many by chance tell the shares of the queues.
SAMPLE: Final = 200
#: Bytes of an unacknowledged message that is looked at; larger ones are taken to be shared out like the others.
_LARGEST: Final = 64 * 1024

# The lists of one queue by priority, and the hash of all queues' unacknowledged messages, in one round trip. What it answers
# is small whatever the messages are like. A random sample, since the first of a hash are always the same.
_READ: Final = """
local ready, heads = 0, {}
for i = 1, #KEYS - 1 do
  local length = redis.call('LLEN', KEYS[i])
  ready = ready + length
  if length > 0 then
    local head = redis.call('LINDEX', KEYS[i], -1)
    heads[#heads + 1] = string.match(head, '"otel%-kit%-enqueued%-at": "([%d%.e+]+)"') or ''
    heads[#heads + 1] = string.match(head, '"eta": "([^"]+)"') or ''
  end
end
local unacked = KEYS[#KEYS]
local total, seen, plain, etas = redis.call('HLEN', unacked), 0, 0, {}
if total > 0 then
  for _, field in ipairs(redis.call('HRANDFIELD', unacked, ARGV[1])) do
    if redis.call('HSTRLEN', unacked, field) <= tonumber(ARGV[2]) then
      local message = redis.call('HGET', unacked, field)
      seen = seen + 1
      local ours = string.find(message, ARGV[3], 1, true)
      if not ours and not string.find(message, ARGV[4], 1, true) then
        ours = string.sub(message, -string.len(ARGV[5])) == ARGV[5]
      end
      if ours then
        local eta = string.match(message, '"eta": "([^"]+)"')
        if eta then etas[#etas + 1] = eta else plain = plain + 1 end
      end
    end
  end
end
return {ready, total, seen, plain, heads, etas}
"""


class RedisQueue:
    """A queue in Kombu's Redis transport. A worker that holds a job back for its ETA has it reserved: that is ``scheduled``.

    A message with an ETA that no worker has fetched yet lies among the ready ones and counts as one of them.

    Args:
        name: The queue's name.
        client: Makes a client of our own; called once, on the thread that reads.
        options: The transport's options: ``global_keyprefix``, ``sep``, ``priority_steps``, ``unacked_key``.
        exchange: With ``routing_key``, what messages say that no producer of ours has sent.
    """

    system = "redis"

    def __init__(
        self,
        name: str,
        client: Callable[[], Any],
        options: Mapping[str, Any] | None = None,
        exchange: str = "",
        routing_key: str | None = None,
    ) -> None:
        self.name = name
        self._connect = client
        self._client: Any = None
        options = options or {}
        prefix = str(options.get("global_keyprefix") or "")
        separator, steps = options.get("sep") or "\x06\x16", options.get("priority_steps") or (0, 3, 6, 9)
        lists = [f"{name}{separator}{step}" if step else name for step in steps]
        self._keys = [prefix + key for key in (*lists, options.get("unacked_key") or "unacked")]
        header = f'"{catalogue.QUEUE_HEADER}": '
        suffix = f", {json.dumps(exchange)}, {json.dumps(routing_key if routing_key is not None else name)}]"
        self._arguments = (SAMPLE, _LARGEST, header + json.dumps(name), header, suffix)

    def read(self) -> QueueState:
        """Look: see `otel_kit.jobs.queues.QueueSource`."""
        with suppress_instrumentation():
            if self._client is None:
                self._client = self._connect()
            found = self._client.eval(_READ, len(self._keys), *self._keys, *self._arguments)
        ready, total, seen, plain, heads, etas = found
        now = time.time()
        later = sum((when(_text(eta)) or 0.0) > now for eta in etas)
        share = total / seen if seen else 0.0
        return QueueState(
            ready=int(ready),
            scheduled=round(later * share),
            reserved=round((plain + len(etas) - later) * share),
            oldest_ready_at=_oldest([_text(text) for text in heads], now),
        )


def _oldest(heads: Sequence[str], now: float) -> float | None:
    """Since when the oldest is ready: of each list the next one out says when it was sent, and for when."""
    ready_at = []
    for sent, eta in zip(heads[::2], heads[1::2], strict=True):
        times = [at for at in (unix_time(sent), when(eta)) if at is not None]
        if unix_time(sent) is not None and max(times) <= now:
            ready_at.append(max(times))
    return min(ready_at, default=None)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class DeclaredQueue:
    """A queue at any broker that answers a passive declaration: RabbitMQ above all. It says how many are ready, and no more.

    Args:
        name: The queue's name.
        connect: Makes a Kombu connection of our own; called on the thread that reads, again after each failure.
        system: The broker.
    """

    def __init__(self, name: str, connect: Callable[[], Any], system: str) -> None:
        self.name = name
        self.system = system
        self._connect = connect
        self._connection: Any = None

    def read(self) -> QueueState:
        """Look: see `otel_kit.jobs.queues.QueueSource`."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            try:
                declared = self._connection.default_channel.queue_declare(self.name, passive=True)
            except self._connection.channel_errors as error:
                # No such queue, or one of another kind: the broker has closed the channel.
                self._close()
                if getattr(error, "reply_code", getattr(error, "code", None)) in (404, "404", None):
                    return QueueState(ready=0)
                raise
        except Exception:
            self._close()
            raise
        return QueueState(ready=int(declared.message_count))

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()


class _Broker:
    """A client to the Redis that an app's messages are in, made once, on the thread that asks for it first."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._client: Any = None
        self._lock = threading.Lock()

    def client(self) -> Any:
        with self._lock, suppress_instrumentation():
            if self._client is None:
                # Kombu reads URLs, sentinels and certificates in ways of its own, and asks the server for a first answer.
                with self._connect() as connection:
                    self._client = like(connection.default_channel.client)
            return self._client

    def hold(self, key: str, token: str, ttl: float) -> bool:
        """A `ReporterLease` in that Redis."""
        return RedisLease(self.client()).hold(key, token, ttl)


def _own_connection(app: Any) -> Callable[[], Any]:
    def connect() -> Any:
        options = {**app.conf.broker_transport_options, "socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
        return app.connection_for_read(transport_options=options, connect_timeout=TIMEOUT)

    return connect


def client_of(app: Any) -> Callable[[], Any] | None:
    """What makes a client of our own to the app's Redis; None where its broker is none."""
    return _Broker(_own_connection(app)).client if _read_system(app) == "redis" else None


def _read_system(app: Any) -> str:
    url = app.conf.broker_read_url or app.conf.broker_url or "amqp://"
    return system_of(url if isinstance(url, str) else str(url[0]))


def watch(app: Any, queues: Sequence[Any]) -> None:
    """Report a worker's queues.

    Args:
        app: The Celery app.
        queues: Kombu's, those that the worker consumes from.
    """
    connect, system = _own_connection(app), _read_system(app)
    broker = _Broker(connect)
    for queue in queues:
        if system == "redis":
            exchange = queue.exchange.name if queue.exchange is not None else ""
            options = app.conf.broker_transport_options
            # To a direct exchange Celery sends by the queue's name alone.
            direct = queue.exchange is None or queue.exchange.type == "direct"
            named = ("", queue.name) if direct else (exchange, queue.routing_key)
            source: QueueSource = RedisQueue(queue.name, broker.client, options, *named)
            watch_queue(source, broker)
        else:
            watch_queue(DeclaredQueue(queue.name, connect, system), None)


def from_url(url: str, queues: Sequence[str]) -> list[QueueSource]:
    """Sources for the queues of a broker, by its URL as Celery takes it.

    Args:
        url: ``redis://``, ``rediss://``, ``sentinel://``, ``amqp://`` or any other that Kombu knows.
        queues: Their names.
    """
    from kombu.connection import Connection

    make: Any = Connection

    def connect() -> Any:
        return make(
            url,
            connect_timeout=TIMEOUT,
            transport_options={"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
            if system == "redis"
            else {},
        )

    system = system_of(url)
    if system == "redis":
        broker = _Broker(connect)
        return [RedisQueue(name, broker.client) for name in queues]
    return [DeclaredQueue(name, connect, system) for name in queues]
