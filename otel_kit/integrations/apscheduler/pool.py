"""Pools of processes: what their runs count for, in the scheduler's process, which outlives them.

The pool does not say when it starts a run. It has so many processes and takes runs in turn, so whoever is among the
first so many that have not come back is taken to run; when they come back they bring the very time along. The ids of a
run's span are chosen here and sent with it: where its process dies, the span that is made in its stead has them too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from weakref import WeakKeyDictionary

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanContext, TraceFlags

from otel_kit.guard import guard
from otel_kit.integrations.apscheduler.jobs import job_of
from otel_kit.jobs import names
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import get_recorder
from otel_kit.telemetry.ids import chosen

_ids: Final = RandomIdGenerator()


class Times(list[datetime]):
    """The wanted times of a job's runs as they go to a process, with a trace id and a span id for each."""

    ids: Sequence[tuple[int, int]] = ()

    def context(self, index: int) -> SpanContext | None:
        """Of the run that is wanted at one of them."""
        if index >= len(self.ids):
            return None
        trace_id, span_id = self.ids[index]
        return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


@dataclass(slots=True)
class _Submitted:
    """One item of a pool's queue: a job, or several wanted runs of it, one after the other."""

    job_id: str
    runs: list[Job]
    times: Times
    started_at: float | None = None


@dataclass(slots=True)
class _Pool:
    slots: int
    items: list[_Submitted] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


_pools: WeakKeyDictionary[Any, _Pool] = WeakKeyDictionary()


def do_submit_job(wrapped: Callable[..., Any], executor: Any, args: Any, kwargs: Any) -> Any:
    """A job goes to a pool of processes."""
    job, run_times = (*args, *kwargs.values())[:2]
    item = None
    with guard("apscheduler: a job goes to a process"):
        times = Times(run_times)
        times.ids = [(_ids.generate_trace_id(), _ids.generate_span_id()) for _ in run_times]
        item = _Submitted(job.id, [job_of(job, run_time) for run_time in run_times], times)
        run_times = times
        pool = _pools.setdefault(executor, _Pool(executor._pool._max_workers))  # noqa: SLF001
        with pool.lock:
            pool.items.append(item)
    try:
        result = wrapped(job, run_times)
    except BaseException:
        if item is not None:
            _take(executor, item)
        raise
    with guard("apscheduler: a job begins in a process"):
        _begin_next(executor)
    return result


def run_job_success(wrapped: Callable[..., Any], executor: Any, args: Any, kwargs: Any) -> Any:
    """The runs of a job came back; only a pool's are known here."""
    with guard("apscheduler: runs came back"):
        job_id, events = (*args, *kwargs.values())[:2]
        item = _find(executor, job_id, [event.scheduled_run_time.timestamp() for event in events])
        if item is not None:
            _end(item)
            for index, (run, event) in enumerate(zip(item.runs, events, strict=False)):
                _count(run, event, item.times.context(index))
            _begin_next(executor)
    return wrapped(*args, **kwargs)


def run_job_error(wrapped: Callable[..., Any], executor: Any, args: Any, kwargs: Any) -> Any:
    """The runs of a job did not come back: their process died, and the pool ends all others with it."""
    with guard("apscheduler: runs did not come back"):
        job_id, error = (*args, *kwargs.values())[:2]
        item = _find(executor, job_id, None)
        if item is not None:
            _lose(item, error)
    return wrapped(*args, **kwargs)


def _begin_next(executor: Any) -> None:
    pool = _pools.get(executor)
    if pool is None:
        return
    now = time.time()
    with pool.lock:
        begun = [item for item in pool.items[: pool.slots] if item.started_at is None]
        for item in begun:
            item.started_at = now
    recorder = get_recorder()
    for item in begun:
        first = item.runs[0]
        recorder.tally.expect(first.name, first.queue)
        recorder.tally.workers.change(first.queue, 1)
        recorder.running.begin(first, now, item.times.context(0))


def _end(item: _Submitted) -> None:
    if item.started_at is not None:
        # It is counted anew with the time that it really started at.
        get_recorder().tally.forgotten(item.runs[0])


def _find(executor: Any, job_id: str, times: list[float] | None) -> _Submitted | None:
    pool = _pools.get(executor)
    if pool is None:
        return None
    with pool.lock:
        for item in pool.items:
            if item.job_id == job_id and (times is None or [run.ready_at for run in item.runs] == times):
                pool.items.remove(item)
                return item
    return None


def _take(executor: Any, item: _Submitted) -> None:
    pool = _pools.get(executor)
    if pool is not None:
        with pool.lock:
            if item in pool.items:
                pool.items.remove(item)


def _count(run: Job, event: Any, context: SpanContext | None) -> None:
    from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MISSED

    recorder = get_recorder()
    if event.code == EVENT_JOB_MISSED:
        recorder.never_ran(run, Outcome.MISSED)
        return
    ran = getattr(event, "otel_kit_ran", None)
    started_at, duration = ran if ran is not None else (time.time(), None)
    recorder.tally.started(run, started_at, context)
    failed = event.code == EVENT_JOB_ERROR
    recorder.tally.finished(run, Outcome.FAILURE if failed else Outcome.SUCCESS, duration, event.exception)


def _lose(item: _Submitted, error: BaseException) -> None:
    recorder = get_recorder()
    first, started_at = item.runs[0], item.started_at
    if started_at is None:
        recorder.never_ran(first, Outcome.REJECTED, error)
        return
    recorder.tally.history.started(names.jobs.bounded(first.name), started_at)
    recorder.tally.finished(first, Outcome.LOST, time.time() - started_at, error)
    with chosen(item.times.context(0)):
        recorder.died(first, Outcome.LOST, started_at, error)
