"""When APScheduler's jobs are wanted, as `job.deadline.time` asks for it."""

from __future__ import annotations

import copy
import functools
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

from otel_kit.integrations.apscheduler import jobs
from otel_kit.jobs.decorator import declaration
from otel_kit.jobs.recorder import get_recorder
from otel_kit.jobs.schedule import default_grace

#: Steps from a trigger's own first date to today: thirty years of days.
_MOST_STEPS = 11_000


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One scheduled job: `trigger` is a copy of our own, to be asked on another thread, without its random jitter."""

    name: str
    trigger: Any
    described: str
    late: float


class _Next:
    """The next run of one trigger, as `default_grace` asks for it."""

    def __init__(self, trigger: Any) -> None:
        self._trigger = trigger

    def next_run(self, after: float) -> float | None:
        # From right after it: a trigger that is asked at the time of a run answers with that very run.
        start = datetime.fromtimestamp(after, UTC) + timedelta(microseconds=1)
        zone = getattr(self._trigger, "timezone", None)
        now = start.astimezone(zone) if zone is not None else start
        found = self._trigger.get_next_fire_time(None, now)
        # One that counts from a date of its own begins there, whatever the time.
        for _ in range(_MOST_STEPS):
            if found is None or found.timestamp() > after:
                return None if found is None else float(found.timestamp())
            found = self._trigger.get_next_fire_time(found, now)
        return None


class Timetable:
    """Of all schedulers of this process, by the names of jobs; several may share one: the earliest counts then."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._wanted: WeakKeyDictionary[Any, dict[str, _Wanted]] = WeakKeyDictionary()

    def put(self, scheduler: Any, job: Any) -> None:
        """A job is scheduled, or is so in another way now; one that is paused or for one date only is not waited for."""
        from apscheduler.triggers.date import DateTrigger

        if getattr(job, "next_run_time", None) is None or isinstance(job.trigger, DateTrigger):
            self.drop(scheduler, job.id)
            return
        name, described = jobs.name(job), repr(job.trigger)
        with self._lock:
            known = self._wanted.setdefault(scheduler, {})
            before = known.get(job.id)
            if before is not None and (before.name, before.described) == (name, described):
                return
            wanted = known[job.id] = _Wanted(name, _steady(job.trigger), described, _late(job))
        self._tell(name)
        if before is not None and before.name != wanted.name:
            self._tell(before.name)

    def drop(self, scheduler: Any, job_id: str) -> None:
        """A job is not wanted any more."""
        with self._lock:
            gone = self._wanted.get(scheduler, {}).pop(job_id, None)
        if gone is not None:
            self._tell(gone.name)

    def drop_all(self, scheduler: Any) -> None:
        """None of a scheduler's jobs is."""
        with self._lock:
            gone = self._wanted.pop(scheduler, {})
        for name in {wanted.name for wanted in gone.values()}:
            self._tell(name)

    def clear(self) -> None:
        """Forget all of it, in a forked child: it is the parent's."""
        self._lock = threading.RLock()
        self._wanted.clear()

    def next_run(self, name: str, after: float) -> float | None:
        """The first wanted run of any job of that name after ``after`` (unix seconds)."""
        found = [_Next(wanted.trigger).next_run(after) for wanted in self._of(name)]
        return min((at for at in found if at is not None), default=None)

    def _of(self, name: str) -> list[_Wanted]:
        with self._lock:
            return [wanted for known in self._wanted.values() for wanted in known.values() if wanted.name == name]

    def _tell(self, name: str) -> None:
        tally = get_recorder().tally
        tally.expect(name)
        tally.schedule(
            name, functools.partial(self.next_run, name), max((each.late for each in self._of(name)), default=0.0)
        )


def _late(job: Any) -> float:
    """Seconds after a wanted time within which a success is due."""
    declared = declaration(job.func)
    if declared is not None and declared.grace is not None:
        return declared.grace
    now = datetime.now(UTC).timestamp()
    late = default_grace(_Next(_steady(job.trigger)), declared.max_runtime if declared is not None else None, now)
    return late + (getattr(job.trigger, "jitter", None) or 0) + (getattr(job, "misfire_grace_time", None) or 0)


def _steady(trigger: Any) -> Any:
    # Not deeply: a time zone that was read from a file can be copied by nobody.
    copied = copy.copy(trigger)
    if getattr(copied, "jitter", None):
        copied.jitter = None
    if hasattr(copied, "triggers"):
        copied.triggers = [_steady(each) for each in copied.triggers]
    return copied
