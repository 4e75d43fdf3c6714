"""By when a periodic job's next success is due. RQ's cron knows the schedule and its workers know the successes.

They are different processes, so the schedule travels with each job that it makes. Since the worker keeps it, a cron that
has died is noticed, too.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from otel_kit.integrations.rq import messages
from otel_kit.jobs.model import Job
from otel_kit.jobs.recorder import get_recorder
from otel_kit.jobs.schedule import Interval, Schedule, default_grace

#: Seconds; a schedule beyond it is garbage.
_LONGEST_INTERVAL: Final = 10 * 366 * 86_400.0
_LONGEST_EXPRESSION: Final = 200
#: Jobs that are followed. Their names come out of messages.
_MOST: Final = 500

_known: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class RQCron:
    """A cron expression as RQ reads it: in the host's local time since RQ 3, in UTC before."""

    expression: str

    def next_run(self, after: float) -> float | None:
        """The first matching moment after ``after``, in unix seconds."""
        from croniter import croniter
        from rq.cron import CronJob

        zone = None if hasattr(CronJob, "get_next_enqueue_time") else UTC
        found = croniter(self.expression, datetime.fromtimestamp(after, zone))
        while True:
            at: float = found.get_next(datetime).timestamp()
            if at > after:  # an hour that comes twice goes back
                return at


def learn(rq_job: Any, job: Job) -> None:
    """Take a job's schedule over from its message, if it has one. Once: a job that keeps failing is due when it was due."""
    told = messages.headers_of(rq_job).get(messages.SCHEDULE_HEADER)
    if not isinstance(told, str) or _known.get(job.name) == told or len(_known) >= _MOST:
        return
    _known[job.name] = told
    schedule = _schedule(told)
    if schedule is None:
        return
    try:
        grace = default_grace(schedule, job.max_runtime, time.time())
    except Exception:  # noqa: BLE001 - what is in a message need not be an expression
        return
    get_recorder().tally.schedule(job.name, schedule.next_run, grace)


def _schedule(told: str) -> Schedule | None:
    try:
        seconds = float(told)
    except ValueError:
        if len(told) > _LONGEST_EXPRESSION:
            return None
        schedule = RQCron(told)
        try:
            schedule.next_run(time.time())
        except Exception:  # noqa: BLE001 - see above
            return None
        return schedule
    return Interval(seconds) if math.isfinite(seconds) and 0 < seconds <= _LONGEST_INTERVAL else None
