"""What is known of each job's past: when it last started, succeeded, failed, how often in a row, and when it is due."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from otel_kit import catalogue
from otel_kit.guard import guard
from otel_kit.jobs.model import Outcome

#: Takes unix seconds and gives the first wanted run after them; None where there is none any more.
NextRun = Callable[[float], float | None]

_FAILED = (Outcome.FAILURE, Outcome.LOST)


@dataclass(slots=True)
class Past:
    """One job's. Times are unix seconds, None where it never came to that.

    Attributes:
        first_seen: When it was first heard of that it is wanted at certain times. One that has never succeeded is due at the
            first of these after it, however often its process has been started anew since.
    """

    last_start: float | None = None
    last_success: float | None = None
    last_failure: float | None = None
    consecutive_failures: int = 0
    first_seen: float | None = None


@dataclass(slots=True)
class _Schedule:
    next_run: NextRun
    grace: float
    since: float
    basis: float | None = None
    due: float | None = None

    def deadline(self, last_success: float | None) -> float | None:
        basis = self.since if last_success is None else last_success
        if basis != self.basis:
            with guard("asking a schedule for its next run"):
                self.due = self.next_run(basis)
            self.basis = basis
        return None if self.due is None else self.due + self.grace


class History:
    """Of all jobs of this process, by their names as metrics have them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pasts: dict[str, Past] = {}
        self._remembered: dict[str, Past] = {}
        self._schedules: dict[str, _Schedule] = {}
        self._limits: dict[str, float] = {}
        #: Told of each change, by name; must not wait for anything.
        self.on_change: list[Callable[[str, Past], None]] = []

    def reset_after_fork(self) -> None:
        """The parent goes on reporting; a child has seen nothing yet."""
        self._lock = threading.RLock()
        self._pasts.clear()
        self._remembered.clear()
        self._schedules.clear()
        self._limits.clear()

    def remember(self, pasts: Mapping[str, Past]) -> None:
        """Take over what an earlier process has seen, of each job when it is first heard of again.

        Not before: jobs that the service no longer has are remembered, too.
        """
        with self._lock:
            self._remembered |= pasts

    def _of(self, name: str) -> Past:
        past = self._pasts.get(name)
        if past is None:
            past = self._pasts[name] = self._remembered.pop(name, Past())
        return past

    def expect(self, name: str) -> None:
        """Let a job that has never run here have a count of failures, 0."""
        with self._lock:
            self._of(name)

    def started(self, name: str, at: float) -> None:
        """A run began."""
        with self._lock:
            past = self._of(name)
            past.last_start = at
        self._changed(name, past)

    def ended(self, name: str, outcome: Outcome) -> None:
        """A run ended, or was given up. A retry says nothing yet."""
        now = time.time()
        with self._lock:
            past = self._of(name)
            if outcome is Outcome.SUCCESS:
                past.last_success, past.consecutive_failures = now, 0
            elif outcome in _FAILED:
                past.last_failure = now
                past.consecutive_failures += 1
            else:
                return
        self._changed(name, past)

    def schedule(self, name: str, next_run: NextRun, grace: float) -> None:
        """A job is wanted at certain times, and late ``grace`` seconds after one."""
        with self._lock:
            past = self._of(name)
            new = past.first_seen is None
            past.first_seen = past.first_seen or time.time()
            self._schedules[name] = _Schedule(next_run, grace, past.first_seen)
        if new:
            self._changed(name, past)

    def limit(self, name: str, max_runtime: float) -> None:
        """A run of this job may take ``max_runtime`` seconds."""
        self._limits[name] = max_runtime

    def observe_times(self, event: str) -> Iterable[tuple[float, dict[str, str]]]:
        """Times of the last ``start``, ``success`` or ``failure``, by job."""
        with self._lock:
            found = [(getattr(past, f"last_{event}"), name) for name, past in self._pasts.items()]
        return [(at, {catalogue.JOB_NAME: name}) for at, name in found if at is not None]

    def observe_consecutive(self) -> Iterable[tuple[float, dict[str, str]]]:
        """Failures since the last success, by job."""
        with self._lock:
            return [(float(p.consecutive_failures), {catalogue.JOB_NAME: name}) for name, p in self._pasts.items()]

    def observe_deadlines(self) -> Iterable[tuple[float, dict[str, str]]]:
        """By when the next success is due, by job."""
        with self._lock:
            known = [(name, each, self._pasts.get(name, Past())) for name, each in self._schedules.items()]
        found = [(name, each.deadline(past.last_success)) for name, each, past in known]
        return [(at, {catalogue.JOB_NAME: name}) for name, at in found if at is not None]

    def observe_limits(self) -> Iterable[tuple[float, dict[str, str]]]:
        """How long a run may take, by job."""
        return [(limit, {catalogue.JOB_NAME: name}) for name, limit in list(self._limits.items())]

    def _changed(self, name: str, past: Past) -> None:
        for tell in list(self.on_change):
            tell(name, past)
