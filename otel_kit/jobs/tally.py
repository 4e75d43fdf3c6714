"""Job metrics, kept by the process that outlives the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext

from otel_kit import catalogue
from otel_kit.jobs import errors, names, propagation
from otel_kit.jobs.history import History, NextRun
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.names import Pairs
from otel_kit.jobs.running import Entry, Running
from otel_kit.jobs.workers import Workers
from otel_kit.telemetry import instruments


class Tally:
    """Counts, times and gauges of jobs. Every method is called once per event, whatever the framework.

    Args:
        running: The jobs that run in this process.
    """

    def __init__(self, running: Running) -> None:
        self._sent = instruments.counter(catalogue.SENT_MESSAGES)
        self._consumed = instruments.counter(catalogue.CONSUMED_MESSAGES)
        self._duration = instruments.histogram(catalogue.DURATION)
        self._wait = instruments.histogram(catalogue.WAIT)
        self._steps = instruments.histogram(catalogue.STEP_DURATION)
        self._executions = instruments.counter(catalogue.EXECUTIONS)
        self._errors = instruments.counter(catalogue.ERRORS)
        self._recovered = instruments.counter(catalogue.RECOVERED)
        self._lock = threading.RLock()
        self._running = running
        self._pairs = Pairs(names.jobs, names.queues)
        self._stages = Pairs(names.jobs, names.steps)
        self._known: set[tuple[str, str]] = set()
        self.history = History()
        self.workers = Workers()
        self._observe()

    def _observe(self) -> None:
        history, workers = self.history, self.workers
        for instrument, observe in (
            (catalogue.ACTIVE, self._observe_active),
            (catalogue.OLDEST_ACTIVE, self._observe_oldest),
            (catalogue.LAST_START, lambda: history.observe_times("start")),
            (catalogue.LAST_SUCCESS, lambda: history.observe_times("success")),
            (catalogue.LAST_FAILURE, lambda: history.observe_times("failure")),
            (catalogue.CONSECUTIVE_FAILURES, history.observe_consecutive),
            (catalogue.DEADLINE, history.observe_deadlines),
            (catalogue.MAX_RUNTIME, history.observe_limits),
            (catalogue.WORKER_SLOTS, workers.observe_slots),
            (catalogue.WORKER_COUNT, workers.observe_count),
            (catalogue.WORKER_HEARTBEAT, workers.observe_beats),
        ):
            instruments.observed_gauge(instrument, observe)
        instruments.observed_counter(catalogue.WORKER_BUSY, workers.observe_busy)
        instruments.observed_counter(catalogue.LABEL_OVERFLOW, self._observe_overflow)

    def reset_after_fork(self) -> None:
        """A child runs nothing and knows nothing yet; its lock is its own."""
        self._lock = threading.RLock()
        self._known.clear()
        self.history.reset_after_fork()
        self.workers.reset_after_fork()
        for each in names.ALL:
            each.reset_after_fork()

    def sent(self, job: Job, error_type: str = "") -> None:
        """A publish ended, with an error or without."""
        attributes = self._messaging(job, "send")
        self._sent.add(1, {**attributes, **({catalogue.ERROR_TYPE: error_type} if error_type else {})})

    def expect(self, name: str, queue: str = "") -> None:
        """Bring all outcomes of a job into being, at zero: without that the first ``lost`` would be no increase."""
        key = self._pairs.bounded(name, queue)
        with self._lock:
            if key in self._known:
                return
            self._known.add(key)
        self.history.expect(key[0])
        for outcome in Outcome:
            self._executions.add(0, {**_as_labels(key), catalogue.JOB_OUTCOME: outcome.value})

    def received(self, job: Job) -> None:
        """A job was delivered to this worker."""
        self._consumed.add(1, self._messaging(job, "process"))
        self.expect(job.name, job.queue)

    def started(self, job: Job, started_at: float, context: SpanContext | None = None) -> Entry:
        """A run began at ``started_at`` (unix seconds); ``context`` is its span's, where that is known here."""
        self.expect(job.name, job.queue)
        waited = job.waited(started_at)
        if waited is not None:
            self._wait.record(waited, self._labels(job), _exemplar(job, context))
        if job.max_runtime is not None:
            self.limit(job.name, job.max_runtime)
        self.history.started(names.jobs.bounded(job.name), started_at)
        self.workers.change(job.queue, 1)
        return self._running.begin(job, started_at, context)

    def finished(self, job: Job, outcome: Outcome, duration: float | None, error: BaseException | None = None) -> None:
        """A run that had started ended after ``duration`` seconds."""
        entry = self._running.end(job)
        if entry is not None:
            self.workers.change(job.queue, -1)
        context = _exemplar(job, entry.context if entry is not None else None)
        self._ended(job, outcome, error, context)
        if duration is not None and outcome in (Outcome.SUCCESS, Outcome.FAILURE, Outcome.RETRY):
            attributes = {**self._labels(job), catalogue.JOB_OUTCOME: outcome.value}
            self._duration.record(max(0.0, duration), attributes, context)

    def forgotten(self, job: Job) -> None:
        """A run that had started is another process's affair from now on: it is neither running here, nor counted."""
        if self._running.end(job) is not None:
            self.workers.change(job.queue, -1)

    def never_ran(self, job: Job, outcome: Outcome, error: BaseException | None = None) -> None:
        """A job was given up before it started."""
        self.expect(job.name, job.queue)
        self._ended(job, outcome, error, _exemplar(job, None))

    def lost(self, job: Job, error: BaseException) -> None:
        """A run that another process had begun came to no end."""
        self.expect(job.name, job.queue)
        self._ended(job, Outcome.LOST, error, _exemplar(job, None))

    def recovered(self, job: Job, how: str) -> None:
        """A lost job came back: ``returned`` or ``requeued``."""
        self._recovered.add(1, {catalogue.JOB_NAME: names.jobs.bounded(job.name), catalogue.JOB_RECOVERY: how})

    def step(self, job: Job, step: str, duration: float) -> None:
        """A stage of a job took ``duration`` seconds."""
        name, stage = self._stages.bounded(job.name, step)
        self._steps.record(max(0.0, duration), {catalogue.JOB_NAME: name, catalogue.JOB_STEP: stage})

    def limit(self, name: str, max_runtime: float) -> None:
        """A run of this job may take ``max_runtime`` seconds."""
        self.history.limit(names.jobs.bounded(name), max_runtime)

    def schedule(self, name: str, next_run: NextRun, grace: float) -> None:
        """A job is wanted at certain times: ``next_run(unix seconds)`` is the first after them; late after ``grace`` seconds."""
        self.history.schedule(names.jobs.bounded(name), next_run, grace)

    def pool(self, queues: Sequence[str], slots: Callable[[], int]) -> None:
        """This process works on these queues, with so many slots in all."""
        self.workers.pool(queues, slots)

    def beat(self, source: str, at: Callable[[], float] | None = None) -> None:
        """The worker showed life now, or where to ask when it last did (unix seconds)."""
        self.workers.beat(source, at)

    def _ended(self, job: Job, outcome: Outcome, error: BaseException | None, context: Context) -> None:
        self._executions.add(1, {**self._labels(job), catalogue.JOB_OUTCOME: outcome.value}, context)
        name = names.jobs.bounded(job.name)
        if error is not None:
            labels = {
                catalogue.JOB_NAME: name,
                catalogue.ERROR_TYPE: names.error_types.bounded(errors.type_name(error)),
                catalogue.JOB_ERROR_CATEGORY: errors.category(error),
            }
            self._errors.add(1, labels, context)
        self.history.ended(name, outcome)

    def _labels(self, job: Job) -> dict[str, str]:
        return _as_labels(self._pairs.bounded(job.name, job.queue))

    def _messaging(self, job: Job, operation: str) -> dict[str, str]:
        return {
            catalogue.MESSAGING_SYSTEM: job.system,
            catalogue.MESSAGING_OPERATION_NAME: operation,
            catalogue.MESSAGING_DESTINATION: names.queues.bounded(job.queue),
        }

    def _active(self) -> dict[tuple[str, str], list[float]]:
        with self._lock:
            found: dict[tuple[str, str], list[float]] = {key: [] for key in self._known}
        for entry in self._running.snapshot():
            found.setdefault(self._pairs.bounded(entry.job.name, entry.job.queue), []).append(entry.started_at)
        return found

    def _observe_active(self) -> Iterable[tuple[float, dict[str, str]]]:
        return [(float(len(times)), _as_labels(key)) for key, times in self._active().items()]

    def _observe_oldest(self) -> Iterable[tuple[float, dict[str, str]]]:
        now = time.time()
        ages = {key: max(0.0, now - min(times)) if times else 0.0 for key, times in self._active().items()}
        return [(age, _as_labels(key)) for key, age in ages.items()]

    def _observe_overflow(self) -> Iterable[tuple[float, dict[str, str]]]:
        counts = (each.overflow() for each in names.ALL)
        return [(float(count), {catalogue.LABEL: label}) for label, count in counts]


def _as_labels(pair: tuple[str, str]) -> dict[str, str]:
    return {catalogue.JOB_NAME: pair[0], catalogue.MESSAGING_DESTINATION: pair[1]}


def _exemplar(job: Job, context: SpanContext | None) -> Context:
    # The exemplar of a run whose span is not known here leads to the trace that it belongs to.
    if context is None:
        return propagation.extract(job)
    return trace.set_span_in_context(trace.NonRecordingSpan(context))
