"""Runs: APScheduler's `run_job` and `run_coroutine_job`, which its executors call in threads, greenlets, tasks, processes.

There is no event for a start, and a job that was to run several times runs in one call of these. So they are called once
for each wanted time, with a job whose function has the run around it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import wrapt
from opentelemetry.trace import SpanContext

from otel_kit.guard import guard
from otel_kit.integrations.apscheduler.jobs import expected, job_of
from otel_kit.integrations.apscheduler.pool import Times
from otel_kit.jobs.body import Body
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import get_recorder
from otel_kit.lifecycle import lifecycle
from otel_kit.telemetry.ids import chosen

#: Runs that one look at the schedule has passed over and that are recorded one by one.
_MOST_PASSED_OVER = 100


class _Observed(wrapt.ObjectProxy[Any]):
    """A job as `run_job` sees it: all its own but for the function."""

    def __init__(self, job: Any, function: Callable[..., Any]) -> None:
        super().__init__(job)
        self._self_function = function

    @property
    def func(self) -> Any:
        return self._self_function


def _body(job: Any, run_time: datetime, *, counted: bool) -> Body:
    described: Job | None = None
    kinds: tuple[type[BaseException], ...] = ()
    with guard("apscheduler: a run begins"):
        described, kinds = job_of(job, run_time), expected(job)
    return Body(described, kinds, alone=True, counted=counted)


def _missed(job: Any, run_time: datetime, events: list[Any]) -> None:
    from apscheduler.events import EVENT_JOB_MISSED

    with guard("apscheduler: a missed run"):
        if any(event.code == EVENT_JOB_MISSED for event in events):
            get_recorder().never_ran(job_of(job, run_time), Outcome.MISSED)


class RunJob:
    """APScheduler's `run_job` with runs around the functions. Sent to a pool's process it arrives as `run_in_child`."""

    def __init__(self, wrapped: Callable[..., Any]) -> None:
        functools.update_wrapper(self, wrapped)
        self.otel_kit_original = wrapped

    @classmethod
    def around(cls, wrapped: Any) -> Any:
        return cls(plain(wrapped))

    def __call__(self, job: Any, jobstore_alias: str, run_times: list[datetime], logger_name: str) -> list[Any]:
        events: list[Any] = []
        for run_time in run_times:
            call = functools.partial(_call, job, run_time)
            made = self.otel_kit_original(_Observed(job, call), jobstore_alias, [run_time], logger_name)
            _missed(job, run_time, made)
            events += made
        return events

    def __reduce__(self) -> Any:
        return _run_in_child, ()


def _call(job: Any, run_time: datetime, /, *args: Any, **kwargs: Any) -> Any:
    with _body(job, run_time, counted=True):
        return job.func(*args, **kwargs)


def around_coroutines(wrapped: Any) -> Any:
    """APScheduler's `run_coroutine_job` with runs around the coroutines."""
    original = plain(wrapped)

    @functools.wraps(original)
    async def run_coroutine_job(
        job: Any, jobstore_alias: str, run_times: list[datetime], logger_name: str
    ) -> list[Any]:
        events: list[Any] = []
        for run_time in run_times:
            wait = functools.partial(_wait, job, run_time)
            made = await original(_Observed(job, wait), jobstore_alias, [run_time], logger_name)
            _missed(job, run_time, made)
            events += made
        return events

    run_coroutine_job.otel_kit_original = original  # type: ignore[attr-defined]
    return run_coroutine_job


async def _wait(job: Any, run_time: datetime, /, *args: Any, **kwargs: Any) -> Any:
    with _body(job, run_time, counted=True):
        return await job.func(*args, **kwargs)


def plain(function: Any) -> Any:
    """The function as APScheduler has it."""
    return getattr(function, "otel_kit_original", function)


def _run_in_child() -> Any:
    return run_in_child


def run_in_child(job: Any, jobstore_alias: str, run_times: list[datetime], logger_name: str) -> list[Any]:
    """`run_job` in a process of a pool: the spans are made here, and the scheduler's process counts.

    What it needs for that, when the run really started and what it took, travels on the events.
    """
    from apscheduler.executors import base

    lifecycle.pooled = True
    original = plain(base.run_job)
    events: list[Any] = []
    for index, run_time in enumerate(run_times):
        ids = run_times.context(index) if isinstance(run_times, Times) else None
        ran: list[tuple[float, float]] = []

        def call(
            run_time: datetime, ids: SpanContext | None, ran: list[tuple[float, float]], /, *args: Any, **kwargs: Any
        ) -> Any:
            with chosen(ids):
                body = _body(job, run_time, counted=False)
            started_at = datetime.now(UTC).timestamp()
            try:
                with body:
                    return job.func(*args, **kwargs)
            finally:
                ran.append((started_at, body.run.duration if body.run is not None else 0.0))

        observed = _Observed(job, functools.partial(call, run_time, ids, ran))
        made = original(observed, jobstore_alias, [run_time], logger_name)
        for event in made:
            event.otel_kit_ran = ran[0] if ran else None
        events += made
    return events


def submit_job(wrapped: Callable[..., Any], _executor: Any, args: Any, kwargs: Any) -> Any:
    """A job is handed to its executor, which may have enough of it running already."""
    job, run_times = (*args, *kwargs.values())[:2]
    try:
        result = wrapped(*args, **kwargs)
    except Exception as error:
        with guard("apscheduler: a job was not taken"):
            _not_taken(job, run_times, error)
        raise
    with guard("apscheduler: a job was submitted"):
        for passed_over in _passed_over(job, run_times):
            get_recorder().never_ran(job_of(job, passed_over), Outcome.SKIPPED)
    return result


def _not_taken(job: Any, run_times: list[datetime], error: Exception) -> None:
    from apscheduler.executors.base import MaxInstancesReachedError

    full = isinstance(error, MaxInstancesReachedError)
    for run_time in run_times[:_MOST_PASSED_OVER]:
        get_recorder().never_ran(
            job_of(job, run_time), Outcome.SKIPPED if full else Outcome.REJECTED, None if full else error
        )


def _passed_over(job: Any, run_times: list[datetime]) -> list[datetime]:
    """The times that were due too and that this one run stands for, since the job is to be coalesced."""
    found: list[datetime] = []
    at = job.next_run_time
    while job.coalesce and at is not None and at < run_times[0] and len(found) < _MOST_PASSED_OVER:
        found.append(at)
        at = job.trigger.get_next_fire_time(at, run_times[0])
    return found
