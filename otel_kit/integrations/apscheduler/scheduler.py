"""Schedulers: what they have scheduled, how many runs they can have at a time, and whether they still move."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit.guard import guard
from otel_kit.integrations.apscheduler import stores
from otel_kit.integrations.apscheduler.timetable import Timetable
from otel_kit.jobs.recorder import get_recorder

#: Seconds between two signs of life of an event loop.
_BEAT = 1.0
#: Seconds by which a thread may sleep in.
_LATE = 1.0


class _Watched:
    """One scheduler: its rounds through the jobs that are due, and its jobs.

    Attributes:
        unreadable_since: Since when (unix seconds) a store has refused to say what is due; None where none does.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = ref(scheduler)
        self.instances: dict[str, tuple[str, int]] = {}
        self.unreadable_since: float | None = None
        self.on_loop = False
        self._thread: threading.Thread | None = None
        self._inside = False
        self._began = self._until = time.time()

    def begins(self) -> None:
        self._thread = threading.current_thread()
        self._began, self._inside = time.time(), True

    def ends(self, wait: float | None) -> None:
        self._until = float("inf") if wait is None else time.time() + wait + _LATE
        self._inside = False

    def due(self, jobs: list[Any]) -> None:
        scheduler = self.scheduler()
        for job in jobs:
            _learn(scheduler, job)

    def alive_at(self) -> float:
        """When it last was where it should be (unix seconds): asleep until it is wanted counts as that."""
        if self.unreadable_since is not None:
            return self.unreadable_since
        if self._inside or (self._thread is not None and not self._thread.is_alive()):
            return self._began
        return min(time.time(), self._until)

    def slots(self) -> int:
        """Runs that it can have at a time: its pools' threads and processes; without a pool, what its jobs allow."""
        scheduler = self.scheduler()
        if scheduler is None:
            return 0
        total = 0
        for alias, executor in list(scheduler._executors.items()):  # noqa: SLF001
            workers = getattr(getattr(executor, "_pool", None), "_max_workers", None)
            total += workers if workers is not None else self._allowed(alias, executor)
        return total

    def _allowed(self, alias: str, executor: Any) -> int:
        scheduled = sum(number for name, number in list(self.instances.values()) if name == alias)
        # A job for one date has left the store by the time that it runs.
        running = dict(executor._instances)  # noqa: SLF001
        return scheduled + sum(number for job_id, number in running.items() if job_id not in self.instances) or 1


_lock = threading.RLock()
_watched: WeakKeyDictionary[Any, _Watched] = WeakKeyDictionary()
_timetable = Timetable()


def forget() -> None:
    """Leave all schedulers alone."""
    with _lock:
        _watched.clear()
    stores.forget()


def reset_after_fork() -> None:
    """A child has the parent's schedulers, but not their threads: it watches those that it starts itself."""
    global _lock
    _lock = threading.RLock()
    _timetable.clear()
    forget()


def process_jobs(wrapped: Callable[..., Any], scheduler: Any, args: Any, kwargs: Any) -> Any:
    """One round: whatever is due is handed to executors."""
    watched = None
    with guard("apscheduler: a round begins"):
        watched = _watch(scheduler)
        watched.begins()
    # A loop goes on in the context of whoever added a job last, in the middle of a request maybe. The store's own traffic
    # makes no spans; runs begin in a context of their own.
    token = otel_context.attach(Context())
    try:
        with suppress_instrumentation():
            wait = wrapped(*args, **kwargs)
    finally:
        otel_context.detach(token)
    if watched is not None:
        watched.ends(wait)
    return wait


def real_add_job(wrapped: Callable[..., Any], scheduler: Any, args: Any, kwargs: Any) -> Any:
    """A job comes into a store."""
    result = wrapped(*args, **kwargs)
    with guard("apscheduler: a job was added"):
        _learn(scheduler, args[0] if args else kwargs["job"])
    return result


def modify_job(wrapped: Callable[..., Any], scheduler: Any, args: Any, kwargs: Any) -> Any:
    """A job is paused, resumed, rescheduled."""
    job = wrapped(*args, **kwargs)
    with guard("apscheduler: a job was modified"):
        if not job.pending:
            _learn(scheduler, job)
    return job


def dispatch_event(wrapped: Callable[..., Any], scheduler: Any, args: Any, kwargs: Any) -> Any:
    """Something happened to jobs or to the scheduler."""
    with guard("apscheduler: an event"):
        event = args[0] if args else kwargs["event"]
        _heed(scheduler, event)
    return wrapped(*args, **kwargs)


def _heed(scheduler: Any, event: Any) -> None:
    from apscheduler.events import EVENT_ALL_JOBS_REMOVED, EVENT_JOB_REMOVED, EVENT_SCHEDULER_SHUTDOWN

    if event.code == EVENT_JOB_REMOVED:
        _timetable.drop(scheduler, event.job_id)
        _forget_job(scheduler, event.job_id)
    elif event.code == EVENT_ALL_JOBS_REMOVED:
        _timetable.drop_all(scheduler)
        _forget_job(scheduler, None)
    elif event.code == EVENT_SCHEDULER_SHUTDOWN:
        _timetable.drop_all(scheduler)
        with _lock:
            _watched.pop(scheduler, None)


def _watch(scheduler: Any) -> _Watched:
    with _lock:
        known = _watched.get(scheduler)
        if known is None:
            known = _watched[scheduler] = _Watched(scheduler)
            first = True
        else:
            first = False
    if first:
        _introduce(scheduler, known)
    for alias, store in list(scheduler._jobstores.items()):  # noqa: SLF001
        stores.observe(store, alias, known)
    return known


def _introduce(scheduler: Any, watched: _Watched) -> None:
    from apscheduler.jobstores.memory import MemoryJobStore

    tally = get_recorder().tally
    tally.pool([""], _slots)
    tally.beat("thread", _alive_at)
    with guard("apscheduler: watching a loop"):
        loop = getattr(scheduler, "_eventloop", None)
        if isinstance(loop, asyncio.AbstractEventLoop):
            watched.on_loop = True
            _beat(loop, watched)
    # Those in other stores would cost a query: they are learnt of as they are added, changed or due.
    for store in list(scheduler._jobstores.values()):  # noqa: SLF001
        if isinstance(store, MemoryJobStore):
            for job in store.get_all_jobs():
                _learn(scheduler, job)


def _learn(scheduler: Any, job: Any) -> None:
    watched = _watched.get(scheduler)
    if watched is not None:
        watched.instances[job.id] = job.executor, job.max_instances
    _timetable.put(scheduler, job)


def _forget_job(scheduler: Any, job_id: str | None) -> None:
    watched = _watched.get(scheduler)
    if watched is None:
        return
    if job_id is None:
        watched.instances.clear()
    else:
        watched.instances.pop(job_id, None)


def _slots() -> int:
    return sum(watched.slots() for watched in list(_watched.values()))


def _alive_at() -> float:
    return min((watched.alive_at() for watched in list(_watched.values())), default=time.time())


def _beat(loop: asyncio.AbstractEventLoop, watched: _Watched) -> None:
    scheduler = watched.scheduler()
    if scheduler is None or scheduler not in _watched or loop.is_closed():
        return
    get_recorder().tally.beat("loop")
    loop.call_later(_BEAT, _beat, loop, watched, context=contextvars.Context())
