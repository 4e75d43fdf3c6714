"""Job stores: what they say is due, what they cannot say, and jobs in them that nobody can read any more."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet, ref

from otel_kit.guard import guard
from otel_kit.jobs.leases import keep, lease_settings
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import get_recorder

_logger = logging.getLogger(__name__)

_METHODS = ("get_due_jobs", "_reconstitute_job")
_RECORDED = "otel_kit_recorded"
_observed: WeakSet[Any] = WeakSet()


class Listener(Protocol):
    """Whoever wants to know."""

    #: Since when (unix seconds) a store has refused to say what is due; None where none does.
    unreadable_since: float | None

    def due(self, jobs: list[Any]) -> None:
        """A store says that these are due."""


def observe(store: Any, alias: str, listener: Listener) -> None:
    """Listen to one store: its classes each have methods of their own, so it is done on the object."""
    if "get_due_jobs" in vars(store):
        return
    _observed.add(store)
    store.get_due_jobs = _due(ref(store), alias, listener, type(store).get_due_jobs)
    if hasattr(type(store), "_reconstitute_job"):
        store._reconstitute_job = _read(ref(store), type(store)._reconstitute_job)  # noqa: SLF001
    with guard("apscheduler: leases"):
        _keep_leases(store)


def forget() -> None:
    """Leave all stores alone."""
    for store in list(_observed):
        for name in _METHODS:
            vars(store).pop(name, None)
    _observed.clear()


def _due(
    store: Callable[[], Any], alias: str, listener: Listener, get_due_jobs: Callable[..., Any]
) -> Callable[..., Any]:
    def due(now: Any) -> Any:
        try:
            jobs = get_due_jobs(store(), now)
        except Exception as error:
            with guard("apscheduler: a store that cannot be read"):
                if listener.unreadable_since is None:
                    listener.unreadable_since = time.time()
                    _logger.error(
                        "otel-kit: APScheduler's store %r cannot be read (%s: %s): nothing of it runs until it can; "
                        "this is said once",
                        alias,
                        type(error).__qualname__,
                        error,
                    )
            raise
        with guard("apscheduler: due jobs"):
            listener.unreadable_since = None
            listener.due(jobs)
        return jobs

    return due


def _read(store: Callable[[], Any], reconstitute: Callable[..., Any]) -> Callable[..., Any]:
    def read(state: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return reconstitute(store(), state, *args, **kwargs)
        except Exception as error:
            with guard("apscheduler: a job that cannot be read"):
                # None is one that somebody has removed a moment ago. What cannot be read is removed by the store.
                if state is not None and not getattr(error, _RECORDED, False):
                    get_recorder().never_ran(Job("unknown", ""), Outcome.REJECTED, error)
            raise

    return read


def set_state(wrapped: Callable[..., Any], _job: Any, args: Any, kwargs: Any) -> Any:
    """A job comes out of a store: its function may have gone meanwhile, and then the store removes it."""
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        with guard("apscheduler: a job whose function has gone"):
            state = args[0] if args else kwargs["state"]
            name, identity = str(state.get("name", "unknown")), str(state.get("id", ""))
            get_recorder().never_ran(Job(name, identity), Outcome.REJECTED, error)
            vars(error)[_RECORDED] = True
        raise


def _keep_leases(store: Any) -> None:
    # A Redis that keeps the jobs can keep the leases too; another store is not asked for such a thing.
    url = lease_settings().url
    client: Any = getattr(store, "redis", None)
    pool: Any = getattr(client, "connection_pool", None)
    if url is None and pool is None:
        return
    from otel_kit.integrations.redis_leases import RedisLeases

    def connect() -> Any:
        given = {**pool.connection_kwargs, "socket_timeout": 2.0, "socket_connect_timeout": 2.0}
        return type(client)(connection_pool=type(pool)(connection_class=pool.connection_class, **given))

    keep(RedisLeases(url if url is not None else connect))
