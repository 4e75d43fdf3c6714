"""The one place where a job becomes a span, metrics and log events.

Two halves. `publishing` and `start` make spans and events, in the process where the work is done. `Tally` makes metrics, in
the process that outlives the run: a recycled child's counters would begin anew with every child.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from otel_kit import catalogue
from otel_kit._version import __version__
from otel_kit.guard import guard
from otel_kit.jobs import errors, events, names, propagation
from otel_kit.jobs.model import Job, Outcome, Trigger
from otel_kit.jobs.running import Entry, Running
from otel_kit.jobs.tally import Tally
from otel_kit.telemetry.context import with_log_fields
from otel_kit.telemetry.sampling import without_decision

_RUN: Final = create_key("otel-kit-run")


@dataclass(slots=True)
class Publication:
    """A publish under way: an integration fills in what it learns and writes the headers."""

    span: Span
    job: Job
    trigger: Trigger
    discarded: bool = False

    def inject(self, carrier: MutableMapping[str, str], previous: SpanContext | None = None) -> None:
        """Write this publish into the job's headers."""
        with trace.use_span(self.span, end_on_exit=False):
            propagation.inject(carrier, self.trigger, previous)

    def discard(self) -> None:
        """Nothing was published after all, since the job was there already: no span, no event, no count."""
        self.discarded = True


class Run:
    """A run under way in this process. Ends with `finish`, once.

    Attributes:
        entry: Where this process counts the run, too: its entry in the registry of running jobs.
    """

    def __init__(
        self, recorder: Recorder, job: Job, span: Span, context: Context, started_at: float, *, counted: bool
    ) -> None:
        self.job = job
        self.entry: Entry | None = None
        self._recorder = recorder
        self._span = span
        self._started_at = started_at
        self._clock = time.monotonic()
        self._finished = False
        #: Seconds it took; 0 until it is finished.
        self.duration = 0.0
        self._token = otel_context.attach(set_value(_RUN, self, context))
        if counted:
            with guard("counting a start"):
                self.entry = recorder.tally.started(job, started_at, span.get_span_context())

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return self._finished

    @property
    def context(self) -> SpanContext:
        """The run's own span context, which a retry links to."""
        return self._span.get_span_context()

    def finish(self, outcome: Outcome, error: BaseException | None = None, *, expected: bool = False) -> None:
        """End the span and say how it went.

        Args:
            outcome: How it went.
            error: What was raised, also for a retry.
            expected: Whether the job declares this error as one that may happen: no ERROR status then.
        """
        if self._finished:
            return
        self._finished = True
        self.duration = time.monotonic() - self._clock
        try:
            with guard("recording the end of a run"):
                self._describe(outcome, error, expected=expected)
        finally:
            # Whatever the error is like: a span that stays open would take over what the thread does next.
            self._span.end()
            otel_context.detach(self._token)
            if self.entry is not None:
                with guard("counting the end of a run"):
                    self._recorder.tally.finished(self.job, outcome, self.duration, error)

    def add_event(self, name: str, attributes: dict[str, AttributeValue]) -> None:
        """Put a moment of the run on its span."""
        self._span.add_event(name, attributes)

    def _describe(self, outcome: Outcome, error: BaseException | None, *, expected: bool) -> None:
        self._span.set_attribute(catalogue.JOB_OUTCOME, outcome.value)
        attributes: dict[str, AttributeValue] = {
            catalogue.JOB_DURATION: self.duration,
            catalogue.JOB_OUTCOME: outcome.value,
        }
        if error is not None:
            described = events.error_attributes(error)
            attributes |= described
            self._span.set_attributes(described)
            if outcome is Outcome.RETRY or expected:
                event = catalogue.JOB_RETRIED if outcome is Outcome.RETRY else catalogue.JOB_EXPECTED_ERROR
                self._span.add_event(event, described)
            else:
                events.add_exception(self._span, error)
        if outcome in (Outcome.FAILURE, Outcome.LOST) and not expected:
            self._span.set_status(Status(StatusCode.ERROR, errors.message(error) if error else outcome.value))
        events.emit_outcome(self.job, outcome, self.duration, attributes, error, expected=expected)

    def abandon(self) -> None:
        """Leave the run to a process that outlives this one: no span, no event, no count."""
        if self._finished:
            return
        self._finished = True
        otel_context.detach(self._token)
        if self.entry is not None:
            self._recorder.tally.forgotten(self.job)


def current_run(context: Context | None = None) -> Run | None:
    """The run that the calling code is part of, in whatever thread or task its context has come to; None outside one."""
    run = cast("Run | None", get_value(_RUN, context))
    return run if run is not None and not run.finished else None


def _trigger_of_current_work() -> Trigger:
    """What is publishing now. What a scheduled run publishes is there because of that schedule."""
    run = current_run()
    if run is not None and run.job.trigger in (Trigger.CRON, Trigger.SCHEDULE):
        return run.job.trigger
    return propagation.trigger_of_current_work()


def _messaging(job: Job, operation: str) -> dict[str, AttributeValue]:
    if not job.system:
        return {}
    return {
        catalogue.MESSAGING_SYSTEM: job.system,
        catalogue.MESSAGING_OPERATION_NAME: operation,
        catalogue.MESSAGING_OPERATION_TYPE: operation,
        catalogue.MESSAGING_DESTINATION: job.queue,
        catalogue.MESSAGING_MESSAGE_ID: job.id,
    }


class Recorder:
    """Turns what integrations report into telemetry.

    Attributes:
        policy: ``auto``, ``parent`` or ``link``: see `otel_kit.jobs.propagation.continues_trace`.
    """

    def __init__(self) -> None:
        self.policy = "auto"
        self._tracer = trace.get_tracer("otel_kit.jobs", __version__)
        self.running = Running()
        self.tally = Tally(self.running)

    def reset_after_fork(self) -> None:
        """A child runs nothing yet."""
        self.running.reset_after_fork()
        self.tally.reset_after_fork()

    @contextmanager
    def publishing(self, job: Job, trigger: Trigger | None = None) -> Iterator[Publication]:
        """Span, metric and event of one publish. What the block raises marks the span and goes on to the caller.

        The span is not made current for the caller's code: a failed publish leaves nothing behind.
        """
        trigger = trigger or _trigger_of_current_work()
        attributes: dict[str, AttributeValue] = {
            **_messaging(job, "send"),
            **events.named(job),
            catalogue.JOB_ID: job.id,
        }
        if job.delayed and job.ready_at is not None:
            attributes[catalogue.JOB_DELAY] = max(0.0, job.ready_at - time.time())
        # Before the broker has it: a quick worker starts it before the publish returns.
        created_at = time.time_ns()
        name = f"send {names.queues.bounded(job.queue)}"
        span = self._tracer.start_span(name, kind=SpanKind.PRODUCER, attributes=attributes)
        publication = Publication(span, job, trigger)
        try:
            yield publication
        except BaseException as error:
            with guard("recording a failed publish"):
                span.set_attribute(catalogue.ERROR_TYPE, errors.type_name(error))
                events.add_exception(span, error)
                span.set_status(Status(StatusCode.ERROR, errors.message(error)))
                self.tally.sent(job, errors.type_name(error))
            raise
        else:
            with guard("recording a publish"):
                if publication.discarded:
                    return
                job = publication.job
                self.tally.sent(job)
                events.emit(
                    catalogue.JOB_CREATED,
                    (SeverityNumber.INFO, "INFO"),
                    f"Job {job.name} created by {trigger.value} in queue {job.queue}",
                    job,
                    {catalogue.JOB_TRIGGER: trigger.value},
                    trace.set_span_in_context(span),
                    created_at,
                )
        finally:
            # A span that is never ended is never sent.
            if not publication.discarded:
                span.end()

    def _name(self, job: Job) -> str:
        # Metrics are made of span names: they are as bounded as labels.
        return f"process {names.queues.bounded(job.queue)}" if job.system else names.jobs.bounded(job.name)

    def start(self, job: Job, *, counted: bool = False) -> Run:
        """Begin a run: its span becomes current, and its name and id stand on every log record until `Run.finish`.

        Args:
            job: What runs.
            counted: Whether this process counts the run as well, since it outlives it: no other process will.
        """
        now = time.time()
        context, links = propagation.start_context(job, self.policy)
        attributes: dict[str, AttributeValue] = {
            **_messaging(job, "process"),
            **events.named(job),
            catalogue.JOB_ID: job.id,
            catalogue.JOB_ATTEMPT: job.attempt,
            catalogue.JOB_TRIGGER: job.trigger.value,
        }
        waited = job.waited(now)
        if waited is not None:
            attributes[catalogue.JOB_WAIT] = waited
        span = self._tracer.start_span(
            self._name(job),
            context,
            SpanKind.CONSUMER if job.system else SpanKind.INTERNAL,
            attributes,
            links,
        )
        context = without_decision(context)
        current = with_log_fields(events.log_fields(job), trace.set_span_in_context(span, context))
        run = Run(self, job, span, current, now, counted=counted)
        with guard("recording a start"):
            after = f" after waiting {waited:.3f} s" if waited is not None else ""
            events.emit(
                catalogue.JOB_STARTED,
                (SeverityNumber.INFO, "INFO"),
                f"Job {job.name} started{after}, attempt {job.attempt}",
                job,
                {},
            )
        return run

    def died(self, job: Job, outcome: Outcome, started_at: float | None, error: BaseException) -> None:
        """Record a run whose process ended in the middle, from one that survived it: the span that it could not send.

        Args:
            job: The run's job.
            outcome: ``LOST``, or ``REVOKED`` where somebody wanted it.
            started_at: When it started (unix seconds), if known.
            error: What is known of the end.
        """
        context, links = propagation.start_context(job, self.policy)
        span = self._tracer.start_span(
            self._name(job),
            context,
            SpanKind.CONSUMER if job.system else SpanKind.INTERNAL,
            {
                **_messaging(job, "process"),
                **events.named(job),
                catalogue.JOB_ID: job.id,
                catalogue.JOB_ATTEMPT: job.attempt,
                catalogue.JOB_TRIGGER: job.trigger.value,
                catalogue.JOB_OUTCOME: outcome.value,
                **events.error_attributes(error),
            },
            links,
            start_time=None if started_at is None else int(started_at * 1e9),
        )
        if outcome is Outcome.LOST:
            span.set_status(Status(StatusCode.ERROR, errors.message(error)))
        duration = None if started_at is None else time.time() - started_at
        attributes = {catalogue.JOB_OUTCOME: outcome.value, **events.error_attributes(error)}
        events.emit_outcome(job, outcome, duration, attributes, error, trace.set_span_in_context(span, context))
        span.end()

    def never_ran(self, job: Job, outcome: Outcome, error: BaseException | None = None) -> None:
        """Record and count a job that was given up before it started: expired, revoked, rejected, missed or skipped."""
        self.tally.never_ran(job, outcome, error)
        context, _links = propagation.start_context(job, self.policy)
        attributes = {
            catalogue.JOB_OUTCOME: outcome.value,
            **(events.error_attributes(error) if error is not None else {}),
        }
        events.emit_outcome(job, outcome, None, attributes, error, context)

    def emit(
        self,
        event: str,
        sentence: str,
        job: Job,
        attributes: dict[str, AttributeValue],
        *,
        severity: SeverityNumber = SeverityNumber.INFO,
        context: Context | None = None,
    ) -> None:
        """Say something of a job that is not its beginning or end: one of the catalogue's events, as a sentence."""
        events.emit(event, (severity, severity.name), sentence, job, attributes, context)


_recorder: Recorder | None = None


def get_recorder() -> Recorder:
    """The process's one recorder; without `otel_kit.configure` it goes wherever the global providers lead."""
    global _recorder
    if _recorder is None:
        _recorder = Recorder()
    return _recorder
