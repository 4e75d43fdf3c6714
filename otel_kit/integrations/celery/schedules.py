"""Beat: what it publishes and why, when each of its jobs is due next, and whether it still ticks."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

from otel_kit.guard import guard
from otel_kit.integrations.celery.messages import is_plumbing, time_limit
from otel_kit.jobs.model import Trigger
from otel_kit.jobs.recorder import get_recorder
from otel_kit.jobs.schedule import default_grace

#: What makes beat publish what it publishes now.
trigger: ContextVar[Trigger | None] = ContextVar("otel_kit_celery_trigger", default=None)

#: Seconds by which beat may wake up later than it said.
_LATE: Final = 5.0


def apply_async(wrapped: Callable[..., Any], _scheduler: Any, args: Any, kwargs: Any) -> Any:
    """Wraps the scheduler's publish of an entry."""
    entry = kwargs.get("entry", args[0] if args else None)
    token = trigger.set(_trigger_of(entry))
    try:
        return wrapped(*args, **kwargs)
    finally:
        trigger.reset(token)


def _trigger_of(entry: Any) -> Trigger:
    from celery.schedules import schedule

    # Times of the clock or of the sun, as against "every so many seconds".
    return Trigger.SCHEDULE if isinstance(getattr(entry, "schedule", None), schedule) else Trigger.CRON


def beat_init(sender: Any, **_kwargs: Any) -> None:
    """Celery's signal; its sender is beat's service, which is about to tick."""
    with guard("celery: beat begins"):
        scheduler = sender.scheduler
        _follow(scheduler)
        announce(scheduler.app, entries_of(scheduler.app))


def _follow(scheduler: Any) -> None:
    """Let beat's loop show life: it has ticked, and says until when it sleeps."""
    wakes_at = [time.time()]
    tick = scheduler.tick

    def ticking(*args: Any, **kwargs: Any) -> Any:
        # Until it comes back: a publish to a broker that does not answer holds up all entries.
        wakes_at[0] = time.time()
        pause = tick(*args, **kwargs)
        wakes_at[0] = time.time() + (pause if isinstance(pause, (int, float)) and pause > 0 else 0.0)
        return pause

    scheduler.tick = ticking
    # It sleeps for minutes where nothing is due: that is life, until it oversleeps.
    get_recorder().tally.beat("loop", lambda: min(time.time(), wakes_at[0] + _LATE))


def entries_of(app: Any) -> list[Any]:
    """The entries of an app's own ``beat_schedule``. Those of a scheduler with a database are its own affair."""
    from celery.beat import ScheduleEntry

    found = []
    for name, given in dict(app.conf.beat_schedule or {}).items():
        with guard("celery: reading an entry of beat's schedule"):
            found.append(ScheduleEntry(**dict(given, name=name, app=app)))
    return found


def announce(app: Any, entries: Iterable[Any], only: Collection[str] | None = None) -> None:
    """Tell when jobs are due.

    Args:
        app: The Celery app.
        entries: Entries of beat's schedule.
        only: Tasks to tell of; all when left out.
    """
    by_task: dict[str, list[Any]] = {}
    for entry in entries:
        if not is_plumbing(entry.task) and (only is None or entry.task in only):
            by_task.setdefault(entry.task, []).append(entry.schedule)
    for name, given in by_task.items():
        with guard("celery: telling a deadline"):
            times = Times(given)
            limit = time_limit(None, app.tasks.get(name))
            get_recorder().tally.schedule(name, times.next_run, default_grace(times, limit, time.time()))


class Times:
    """When a task is wanted by one or more of Celery's schedules."""

    def __init__(self, schedules: Sequence[Any]) -> None:
        self._schedules = schedules

    def next_run(self, after: float) -> float | None:
        """The first wanted run after ``after``, both in unix seconds."""
        return min((self._next(schedule, after) for schedule in self._schedules), default=None)

    @staticmethod
    def _next(schedule: Any, after: float) -> float:
        # A schedule only says how long it is from its own "now": so that is the moment that we ask for.
        at = datetime.fromtimestamp(after, UTC)
        asked = copy.copy(schedule)
        asked.app = schedule.app
        asked.nowfun = lambda: at
        return after + float(asked.remaining_estimate(at).total_seconds())
