"""What an APScheduler job says of itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from otel_kit.jobs.decorator import declaration, name_of
from otel_kit.jobs.model import Job, Trigger
from otel_kit.jobs.names import OTHER, Names

_LONGEST_ID = 200
# Given by hand, a name may hold a customer's number: beyond the limit the function's own stands in.
_given = Names("the names that APScheduler's jobs are given", 200)


def name(job: Any) -> str:
    """The job's name: its function's if that is declared to be a job, else the one that it was given, else its function's.

    APScheduler itself names a job after the function without its module, where nobody has given it a name.
    """
    declared = declaration(job.func)
    if declared is not None:
        return declared.name
    if job.name != _unnamed(job.func):
        known = _given.bounded(job.name)
        if known != OTHER:
            return known
    return name_of(getattr(job.func, "__func__", job.func))


def _unnamed(function: Any) -> str | None:
    from apscheduler.util import get_callable_name

    try:
        given: str = get_callable_name(function)
    except TypeError:
        return None
    return given


def trigger(job: Any) -> Trigger:
    """What makes it run: a cron expression, an interval or the like, or one date that somebody has asked for."""
    from apscheduler.triggers.cron import CronTrigger
    from apscheduler.triggers.date import DateTrigger

    if isinstance(job.trigger, CronTrigger):
        return Trigger.CRON
    return Trigger.MANUAL if isinstance(job.trigger, DateTrigger) else Trigger.SCHEDULE


def job_of(job: Any, run_time: datetime) -> Job:
    """One wanted run. Its id is the job's and the time: the same in every process, and for two schedulers that share a store."""
    declared = declaration(job.func)
    wanted = run_time.astimezone(UTC)
    return Job(
        name(job),
        f"{job.id[:_LONGEST_ID]}@{wanted.isoformat(timespec='milliseconds')}",
        trigger=trigger(job),
        ready_at=wanted.timestamp(),
        max_runtime=declared.max_runtime if declared is not None else None,
        recoverable=declared is not None and declared.recoverable,
    )


def expected(job: Any) -> tuple[type[BaseException], ...]:
    """Errors that its function declares as ones that may happen."""
    declared = declaration(job.func)
    return declared.expected if declared is not None else ()
