"""Job metrics, kept by the process that outlives the run."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable

from opentelemetry.context import Context

from otel_kit import catalogue
from otel_kit.jobs import errors, propagation
from otel_kit.jobs.model import Job, Outcome
from otel_kit.telemetry import instruments

_Labels = tuple[tuple[str, str], ...]


class Tally:
    """Counts, times and gauges of jobs. Every method is called once per event, whatever the framework."""

    def __init__(self) -> None:
        self._sent = instruments.counter(catalogue.SENT_MESSAGES)
        self._consumed = instruments.counter(catalogue.CONSUMED_MESSAGES)
        self._duration = instruments.histogram(catalogue.DURATION)
        self._wait = instruments.histogram(catalogue.WAIT)
        self._executions = instruments.counter(catalogue.EXECUTIONS)
        self._errors = instruments.counter(catalogue.ERRORS)
        self._lock = threading.RLock()
        self._active: Counter[_Labels] = Counter()
        self._last: dict[str, dict[str, float]] = {"start": {}, "success": {}, "failure": {}}
        self._known: set[_Labels] = set()
        instruments.observed_gauge(catalogue.ACTIVE, self._observe_active)
        instruments.observed_gauge(catalogue.LAST_START, lambda: self._observe_last("start"))
        instruments.observed_gauge(catalogue.LAST_SUCCESS, lambda: self._observe_last("success"))
        instruments.observed_gauge(catalogue.LAST_FAILURE, lambda: self._observe_last("failure"))

    def reset_after_fork(self) -> None:
        """A child runs nothing and knows nothing yet; its lock is its own."""
        self._lock = threading.RLock()
        self._active.clear()
        self._known.clear()
        for times in self._last.values():
            times.clear()

    def sent(self, job: Job, error_type: str = "") -> None:
        """A publish ended, with an error or without."""
        attributes = {**_messaging(job, "send"), **({catalogue.ERROR_TYPE: error_type} if error_type else {})}
        self._sent.add(1, attributes)

    def expect(self, name: str, queue: str) -> None:
        """Bring all outcomes of a job into being, at zero: without that the first ``lost`` would be no increase."""
        labels = {catalogue.JOB_NAME: name, catalogue.MESSAGING_DESTINATION: queue}
        with self._lock:
            key = tuple(labels.items())
            if key in self._known:
                return
            self._known.add(key)
        for outcome in Outcome:
            self._executions.add(0, {**labels, catalogue.JOB_OUTCOME: outcome.value})

    def received(self, job: Job) -> None:
        """A job was delivered to this worker."""
        self._consumed.add(1, _messaging(job, "process"))
        self.expect(job.name, job.queue)

    def started(self, job: Job, started_at: float) -> None:
        """A run began at ``started_at`` (unix seconds)."""
        waited = job.waited(started_at)
        if waited is not None:
            self._wait.record(waited, _labels(job), _context(job))
        with self._lock:
            self._active[tuple(_labels(job).items())] += 1
            self._last["start"][job.name] = started_at

    def finished(self, job: Job, outcome: Outcome, duration: float | None, error: BaseException | None = None) -> None:
        """A run that had started ended after ``duration`` seconds."""
        with self._lock:
            self._active[tuple(_labels(job).items())] -= 1
        self._ended(job, outcome, error)
        if duration is not None and outcome in (Outcome.SUCCESS, Outcome.FAILURE, Outcome.RETRY):
            attributes = {**_labels(job), catalogue.JOB_OUTCOME: outcome.value}
            self._duration.record(max(0.0, duration), attributes, _context(job))

    def never_ran(self, job: Job, outcome: Outcome) -> None:
        """A job was given up before it started."""
        self._ended(job, outcome, None)

    def _ended(self, job: Job, outcome: Outcome, error: BaseException | None) -> None:
        self._executions.add(1, {**_labels(job), catalogue.JOB_OUTCOME: outcome.value}, _context(job))
        if error is not None:
            labels = {
                catalogue.JOB_NAME: job.name,
                catalogue.ERROR_TYPE: errors.type_name(error),
                catalogue.JOB_ERROR_CATEGORY: errors.category(error),
            }
            self._errors.add(1, labels, _context(job))
        with self._lock:
            if outcome is Outcome.SUCCESS:
                self._last["success"][job.name] = time.time()
            elif outcome in (Outcome.FAILURE, Outcome.LOST):
                self._last["failure"][job.name] = time.time()

    def _observe_active(self) -> Iterable[tuple[float, dict[str, str]]]:
        with self._lock:
            return [(float(max(0, number)), dict(labels)) for labels, number in self._active.items()]

    def _observe_last(self, event: str) -> Iterable[tuple[float, dict[str, str]]]:
        with self._lock:
            return [(at, {catalogue.JOB_NAME: name}) for name, at in self._last[event].items()]


def _labels(job: Job) -> dict[str, str]:
    return {catalogue.JOB_NAME: job.name, catalogue.MESSAGING_DESTINATION: job.queue}


def _messaging(job: Job, operation: str) -> dict[str, str]:
    return {
        catalogue.MESSAGING_SYSTEM: job.system,
        catalogue.MESSAGING_OPERATION_NAME: operation,
        catalogue.MESSAGING_DESTINATION: job.queue,
    }


def _context(job: Job) -> Context:
    # The exemplar of a run that happened elsewhere leads to the trace that it belongs to.
    return propagation.extract(job)
