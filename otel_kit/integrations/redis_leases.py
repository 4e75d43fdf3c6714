"""Leases in Redis 6 or 7: a sorted set by the time at which each runs out, and what is known of each beside it.

All times are the server's own. Every change is one script, so that no two processes claim the same run. The keys share a
hash slot, live under ``otel-kit:{leases}`` and go away by themselves a week after the last process that used them.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit.integrations import redis_lease_scripts as scripts
from otel_kit.integrations.redis_keys import own_client
from otel_kit.jobs.lease_store import Fate, Lease, from_text, key_of_job
from otel_kit.jobs.leases import lease_settings
from otel_kit.settings import without_credentials

PREFIX: Final = "otel-kit:{leases}"
#: Lives of a lease that a claim lasts.
_CLAIM: Final = 3
#: Leases that are kept at once; more runs than that are not leased.
MOST_LEASES: Final = 20_000
#: Dead leases that are looked at in one turn.
_SCAN: Final = 1000
#: Lost runs that are remembered, and for how long (seconds): `otel-kit jobs lost`.
MOST_LOST: Final = 1000
LOST_KEPT: Final = 2 * 86_400
#: Seconds after which keys that nobody uses go away.
_KEYS_KEPT: Final = 7 * 86_400


class State(StrEnum):
    """What became of a lost run."""

    CLAIMED = "claimed"
    LOST = "lost"
    REQUEUEING = "requeueing"
    REQUEUED = "requeued"


@dataclass(frozen=True, slots=True)
class Running:
    """A run with a lease. ``remaining``: seconds until that runs out, negative when it has."""

    lease: Lease
    remaining: float


@dataclass(frozen=True, slots=True)
class Lost:
    """A run that was declared lost at ``at`` (the server's unix seconds), ``age`` seconds ago."""

    lease: Lease
    at: float
    age: float
    state: State


class RedisLeases:
    """A `otel_kit.jobs.lease_store.LeaseStore` in Redis, with a connection of its own.

    Args:
        server: The server's URL (``redis://``, ``rediss://``, ``unix://``; Celery's ``redis+socket://`` too), or a function
            that makes a synchronous client of redis-py, called in each process that needs one.
        override: Whether a URL in OTEL_KIT_LEASES wins over it.

    Raises:
        ValueError: A URL that is none of these.
    """

    def __init__(self, server: str | Callable[[], Any], *, override: bool = True) -> None:
        asked = lease_settings().url if override else None
        self.name = "Redis"
        if asked is not None or isinstance(server, str):
            server = asked or server
            self.name = without_credentials(str(server)).partition("?")[0]
        self._connect = connecting(server) if isinstance(server, str) else server
        self.renew()

    def renew(self) -> None:
        """Start anew: see `LeaseStore.renew`."""
        self._lock = threading.Lock()
        self._client: Any = None

    def hold(self, leases: Sequence[tuple[str, str]], ttl: float) -> list[Fate]:
        """Take or renew leases: see `LeaseStore.hold`."""
        texts = [text for pair in leases for text in pair]
        return [Fate(fate) for fate in self._run(scripts.HOLD, _ms(ttl), MOST_LEASES, _KEYS_KEPT, *texts)]

    def release(self, members: Sequence[str]) -> list[Fate]:
        """Give up leases: see `LeaseStore.release`."""
        return [Fate(fate) for fate in self._run(scripts.RELEASE, *members)]

    def claim(self, claimer: str, service: str, limit: int, ttl: float) -> list[tuple[str, str]]:
        """Take over dead leases: see `LeaseStore.claim`. Another service's only after half a life of a lease more."""
        limits = (limit, _SCAN, MOST_LOST, LOST_KEPT * 1000, _KEYS_KEPT)
        found = self._run(scripts.CLAIM, _ms(ttl), _ms(ttl * _CLAIM), claimer, service, *limits)
        texts = [_text(each) for each in found]
        return list(zip(texts[::2], texts[1::2], strict=True))

    def settle(self, claimer: str, members: Sequence[str]) -> None:
        """Forget claimed leases: see `LeaseStore.settle`."""
        self._run(scripts.SETTLE, claimer, *members)

    def running(self) -> list[Running]:
        """All leases, those that run out first first; read only. What cannot be read is left out."""
        found = []
        for _member, details, milliseconds in self._rows(scripts.RUNNING):
            lease = _lease(details)
            if lease is not None:
                found.append(Running(lease, float(milliseconds) / 1000))
        return found

    def lost(self) -> list[Lost]:
        """The lost runs that are remembered, latest first; read only."""
        found = []
        for _member, details, at, age, state in self._rows(scripts.LOST, columns=5):
            lease = _lease(details)
            if lease is not None:
                found.append(Lost(lease, float(at) / 1000, float(age) / 1000, _state(_text(state))))
        return found

    def begin_recovery(self, lease: Lease, *, again: bool = False) -> str:
        """Take a lost run in hand, if that is still right at this very moment; nobody else can then.

        Args:
            lease: The lost run.
            again: Whether it may be taken over from somebody who did not come to an end with it.

        Returns:
            ``""``, or why not: it came back, runs elsewhere, or is taken in hand already.
        """
        refused: list[bytes] = self._run(
            scripts.BEGIN_RECOVERY, lease.member, key_of_job(lease.job.id), "again" if again else ""
        )
        return _text(refused[0]) if refused else ""

    def end_recovery(self, lease: Lease, *, done: bool) -> None:
        """Say whether the job was run again; if not, it is lost as before."""
        self._run(scripts.END_RECOVERY, lease.member, "requeued" if done else "")

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _rows(self, script: str, columns: int = 3) -> list[tuple[bytes, ...]]:
        found = self._run(script, MOST_LEASES)
        return [tuple(found[first : first + columns]) for first in range(0, len(found), columns)]

    def _run(self, script: str, *arguments: str | int) -> Any:
        keys = [f"{PREFIX}:{name}" for name in scripts.KEYS]
        # One at a time, and not by way of the application's instrumentation: it is not the application's traffic.
        with self._lock, suppress_instrumentation():
            if self._client is None:
                self._client = self._connect()
            return self._client.eval(script, len(keys), *keys, *arguments)


def connecting(server: str) -> Callable[[], Any]:
    """What makes a client for a server's URL.

    Raises:
        ValueError: The URL is none of a single Redis.
    """
    url = redis_url(server)
    if url is None:
        shown = without_credentials(repr(server))
        raise ValueError(f"leases are kept in Redis: expected redis://, rediss:// or unix://, not {shown}")
    return lambda: _connect(url)


def leases_for(server: str | Callable[[], Any] | None) -> RedisLeases | None:
    """Where a worker's leases are: in the Redis that OTEL_KIT_LEASES names, else in its broker's, if that is a Redis.

    Args:
        server: The broker's URL, or what makes a client for it; None where the broker is none.
    """
    settings = lease_settings()
    if not settings.on:
        return None
    if settings.url is None and (server is None or (isinstance(server, str) and redis_url(server) is None)):
        return None
    return RedisLeases(server or "")


def redis_url(url: str) -> str | None:
    """A broker's URL as redis-py takes it; None where the broker is no single Redis."""
    scheme = urlsplit(url).scheme
    if ";" in url:
        return None
    if scheme in ("redis+socket", "unix"):
        return "unix" + url[len(scheme) :].replace("virtual_host=", "db=")
    return url if scheme in ("redis", "rediss") else None


def new_token() -> str:
    """An id that nobody else has."""
    return uuid.uuid4().hex


def _connect(url: str) -> Any:
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    # Once more at once: a connection that was idle may have been ended by what lies between.
    return own_client(url, retry=Retry(NoBackoff(), 1), decode_responses=False)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _text(raw: Any) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)


def _lease(details: Any) -> Lease | None:
    try:
        return from_text(details)
    except ValueError:
        return None


def _state(text: str) -> State:
    # Besides the two of ours it is the id of whoever has claimed it.
    if not text:
        return State.LOST
    return State(text) if text in (State.REQUEUED, State.REQUEUEING) else State.CLAIMED
