"""When a job is wanted: cron expressions and intervals, in a time zone, right across its clock changes."""

from __future__ import annotations

import logging
import math
import os
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

_logger = logging.getLogger(__name__)

#: The variable that names the time zone of schedules that name none themselves.
TIMEZONE_VARIABLE: Final = "OTEL_KIT_TIMEZONE"
#: What crontab(5) lets one write instead of five fields; ``@reboot`` is no time.
_ALIASES: Final = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
_CRON: Final = (
    'a cron expression of five fields ("0 2 * * *"), or six with seconds first, or '
    f"{', '.join(_ALIASES)}; or an interval as seconds or timedelta, more than 0 and at most 10 years"
)
_LONGEST_INTERVAL: Final = 10 * 366 * 86_400.0
#: Seconds by which a run may be late at least, and at most where nobody has said how long one takes.
_LEAST_GRACE: Final = 60.0
_MOST_GRACE: Final = 3600.0


class Schedule(Protocol):
    """When something is wanted."""

    def next_run(self, after: float) -> float | None:
        """The first wanted run after ``after``, both in unix seconds; None where there is none any more."""
        ...


class _LocalZone(tzinfo):
    """The host's own zone, with its clock changes, as the C library knows it: TZ or /etc/localtime in any form.

    There is one object of it, so that two times in it are compared as clocks show them.
    """

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None if moment is None else moment.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, moment: datetime | None) -> timedelta | None:  # noqa: ARG002 - an answer that is always allowed
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        return None if moment is None else moment.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, moment: datetime) -> datetime:
        seconds = moment.replace(microsecond=0, tzinfo=UTC).timestamp()
        # Unlike astimezone() this sets `fold`, which tells apart the hours of one that comes twice.
        local = datetime.fromtimestamp(seconds)  # noqa: DTZ006 - the host's zone is wanted
        return local.replace(microsecond=moment.microsecond, tzinfo=self)

    def __repr__(self) -> str:
        return "the host's local zone"


LOCAL: Final[tzinfo] = _LocalZone()
_default: tzinfo | None = None


def zone(name: str | tzinfo) -> tzinfo:
    """A time zone by its name in the IANA database (``Europe/Berlin``), or ``local`` for the host's.

    Raises:
        ValueError: There is none of that name.
    """
    if isinstance(name, tzinfo):
        return name
    if isinstance(name, str) and name.strip().lower() == "local":
        return LOCAL
    try:
        return ZoneInfo(name)
    except Exception:  # noqa: BLE001 - a path, an empty name or a directory raise whatever the file system says
        raise ValueError(
            f"timezone={name!r} is not accepted; accepted: a name of the IANA database, for example Europe/Berlin, "
            "UTC, or local"
        ) from None


def use_timezone(name: str | tzinfo | None) -> None:
    """Have schedules that name no zone themselves follow this one; None: `TIMEZONE_VARIABLE`, else the host's.

    Raises:
        ValueError: There is none of that name.
    """
    global _default
    _default = None if name is None else zone(name)


def default_zone() -> tzinfo:
    """The zone of schedules that name none: what crontab on this host goes by, unless somebody has said otherwise."""
    global _default
    if _default is None:
        given = os.environ.get(TIMEZONE_VARIABLE, "").strip()
        try:
            _default = zone(given) if given else LOCAL
        except ValueError as error:
            _logger.error("otel-kit: %s: %s. Going on with the host's zone", TIMEZONE_VARIABLE, error)
            _default = LOCAL
    return _default


class Interval:
    """Every so many seconds, counted from the run before."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def next_run(self, after: float) -> float | None:
        """So many seconds later."""
        return after + self.seconds

    def __repr__(self) -> str:
        return f"every {self.seconds:g} s"


class Cron:
    """A cron expression. Its zone may stay open until the first question: modules are imported before anybody configures.

    What happens when clocks change is what Debian's cron does: a time that is left out is made up for right after the
    change, one that comes twice is taken once, and what runs every so often follows the clock.
    """

    def __init__(self, expression: str, timezone: tzinfo | None) -> None:
        self.expression = expression
        self._timezone = timezone
        self._make = _cronsim()
        self._make(expression, datetime.now(UTC))  # an expression that is none is a mistake now, not tonight

    def next_run(self, after: float) -> float | None:
        """The first matching second after ``after``, in unix seconds."""
        start = datetime.fromtimestamp(math.floor(after), self._timezone or default_zone())
        for found in self._make(self.expression, start):
            at: float = found.timestamp()
            if at > after:  # in the hour that comes twice, the same clock time may be behind us already
                return at
        return None

    def __repr__(self) -> str:
        return f"{self.expression} in {self._timezone or default_zone()}"


def _cronsim() -> Any:
    try:
        from cronsim import CronSim
    except ImportError:
        raise ModuleNotFoundError(
            "a cron expression as a job's schedule needs the package cronsim: pip install 'otel-kit[schedule]'"
        ) from None
    return CronSim


def parse(given: object, timezone: str | tzinfo | None = None) -> Cron | Interval:
    """A schedule as people write it.

    Args:
        given: A cron expression or one of its aliases, or an interval: seconds or a `datetime.timedelta`.
        timezone: Of a cron expression; left out: see `default_zone`.

    Raises:
        ValueError: It is none, or can never come to pass; the message names what is accepted.
        ModuleNotFoundError: A cron expression, and no cronsim.
    """
    named = zone(timezone) if timezone is not None else None
    if isinstance(given, str):
        return _cron(given, named)
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 < seconds <= _LONGEST_INTERVAL:
        return Interval(float(seconds))
    raise ValueError(f"schedule={given!r} is not accepted; accepted: {_CRON}")


def _cron(given: str, timezone: tzinfo | None) -> Cron:
    from_alias = _ALIASES.get(given.strip().lower(), given.strip())
    try:
        return Cron(from_alias, timezone)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - CronSimError, and what odd characters make of its parser
        raise ValueError(f"schedule={given!r} is not accepted ({error}); accepted: {_CRON}") from None


def default_grace(schedule: Schedule, max_runtime: float | None, now: float) -> float:
    """By how many seconds a success may be later than the scheduled start before somebody is told.

    A run's own time is part of it: its `max_runtime` and a minute. Where that is not known, half the time to the run
    after, from a minute to an hour.
    """
    if max_runtime is not None:
        return max_runtime + _LEAST_GRACE
    first = schedule.next_run(now)
    second = schedule.next_run(first) if first is not None else None
    period = second - first if first is not None and second is not None else math.inf
    return min(max(period / 2, _LEAST_GRACE), _MOST_GRACE)
