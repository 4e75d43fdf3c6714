"""A worker's life: silent where it asks Redis again and again, audible where the application's own code runs."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit.guard import guard
from otel_kit.integrations.arq import producer, run_job
from otel_kit.integrations.arq.connections import own_client
from otel_kit.integrations.arq.delivery import limit_of
from otel_kit.integrations.arq.queues import ArqQueue
from otel_kit.integrations.redis_keys import RedisLease
from otel_kit.integrations.redis_leases import leases_for
from otel_kit.jobs.leases import keep
from otel_kit.jobs.model import Trigger
from otel_kit.jobs.queues import watch_queue
from otel_kit.jobs.recorder import get_recorder

#: Seconds between two signs of life of the event loop.
_BEAT: Final = 1.0
#: Seconds that a cron job may be late beyond its own time limit: a worker that restarts takes less.
_GRACE: Final = 60.0

_Hook = Callable[[dict[Any, Any]], Awaitable[None]]


async def main(wrapped: Callable[..., Any], worker: Any, args: Any, kwargs: Any) -> Any:
    """The worker's own Redis traffic makes no spans; its loop shows that it moves."""
    hooks, beat = _Hooks(worker, otel_context.get_current()), _Beat()
    with guard("arq: preparing a worker"):
        hooks.put()
        beat()
    try:
        with suppress_instrumentation():
            return await wrapped(*args, **kwargs)
    finally:
        with guard("arq: leaving a worker"):
            beat.stop()
            hooks.take()


async def close(wrapped: Callable[..., Any], worker: Any, args: Any, kwargs: Any) -> Any:
    on_shutdown = worker.on_shutdown
    worker.on_shutdown = _audible(on_shutdown, otel_context.get_current())
    try:
        with suppress_instrumentation():
            return await wrapped(*args, **kwargs)
    finally:
        worker.on_shutdown = on_shutdown


async def run_cron(wrapped: Callable[..., Any], _worker: Any, args: Any, kwargs: Any) -> Any:
    token = producer.trigger.set(Trigger.CRON)
    try:
        return await wrapped(*args, **kwargs)
    finally:
        producer.trigger.reset(token)


class _Beat:
    """Shows every second that the loop moves; one that a job blocks does not come to it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.TimerHandle | None = None

    def __call__(self) -> None:
        get_recorder().tally.beat("loop")
        self._next = self._loop.call_later(_BEAT, self)

    def stop(self) -> None:
        if self._next is not None:
            self._next.cancel()


class _Hooks:
    """What stands around the application's functions and hooks while a worker runs.

    Args:
        worker: arq's.
        surroundings: The context that the worker was started in, in which the application's own code goes on.
    """

    def __init__(self, worker: Any, surroundings: Context) -> None:
        self._worker = worker
        self._surroundings = surroundings
        self._replaced: dict[str, tuple[Any, Any]] = {}

    def put(self) -> None:
        worker = self._worker
        self._replace("functions", {name: run_job.watched(each) for name, each in worker.functions.items()})
        self._replace("on_startup", self._on_startup(worker.on_startup))
        self._replace("on_job_start", self._on_job_start(worker.on_job_start))

    def take(self) -> None:
        for name, (original, ours) in self._replaced.items():
            if getattr(self._worker, name) is ours:  # the application may have put its own in the place since
                setattr(self._worker, name, original)

    def _replace(self, name: str, ours: Any) -> None:
        self._replaced[name] = getattr(self._worker, name), ours
        setattr(self._worker, name, ours)

    def _on_startup(self, original: _Hook | None) -> _Hook:
        audible = _audible(original, self._surroundings)

        async def on_startup(ctx: dict[Any, Any]) -> None:
            if audible is not None:
                await audible(ctx)
            with guard("arq: a worker is ready"):
                _announce(self._worker)

        return on_startup

    def _on_job_start(self, original: _Hook | None) -> _Hook:
        async def on_job_start(ctx: dict[Any, Any]) -> None:
            started = run_job.current()
            if started is not None:
                await started.start(ctx, self._surroundings)
            if original is not None:
                await original(ctx)

        return on_job_start


def _audible(hook: _Hook | None, surroundings: Context) -> _Hook | None:
    if hook is None:
        return None

    async def audible(ctx: dict[Any, Any]) -> None:
        with _within(surroundings):
            await hook(ctx)

    return audible


@contextmanager
def _within(context: Context) -> Iterator[None]:
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


def _announce(worker: Any) -> None:
    """Say what is to be expected of this worker, and begin to look after its queue and its jobs."""
    tally, queue = get_recorder().tally, worker.queue_name
    for name, function in worker.functions.items():
        tally.expect(name, queue)
        limit = limit_of(worker, function)
        if limit is not None:
            tally.limit(name, limit)
    for name in {cron_job.name for cron_job in worker.cron_jobs}:
        limit = limit_of(worker, worker.functions.get(name)) or 0.0
        tally.schedule(name, _next_run(worker, name), limit + _GRACE)
    tally.pool([queue], lambda: int(worker.max_jobs))
    connect = functools.partial(own_client, worker.pool)
    client = connect()
    watch_queue(ArqQueue(client, queue), RedisLease(client))
    # arq runs a lost job again by itself, when its key in-progress expires: nobody else has to.
    keep(leases_for(connect), framework="arq")


def _next_run(worker: Any, name: str) -> Callable[[float], float | None]:
    """When a cron job is wanted next, by any of the schedules that it has in this worker."""
    from arq.cron import next_cron

    schedules = [{field: getattr(each, field) for field in _FIELDS} for each in worker.cron_jobs if each.name == name]

    def next_run(after: float) -> float | None:
        moment = datetime.fromtimestamp(after, tz=worker.timezone)
        return min(float(next_cron(moment, **schedule).timestamp()) for schedule in schedules)

    return next_run


_FIELDS: Final = ("month", "day", "weekday", "hour", "minute", "second", "microsecond")
