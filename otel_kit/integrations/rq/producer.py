"""The producer's side: whatever hands a job to RQ, whoever asked for it.

An application's publish goes through `Queue.enqueue_job`, `Queue.schedule_job` or `Queue.enqueue_many`. Where RQ publishes a
job anew (a retry, a repetition, a requeue) it uses the first two, or `Queue._enqueue_job`, and a *reason* says why. Where it
only moves a job on, from the scheduler's registry into the queue for instance, there is no reason and nothing is published.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanContext

from otel_kit.guard import guard
from otel_kit.integrations.rq import messages, runs
from otel_kit.jobs import propagation
from otel_kit.jobs.model import Job, Trigger
from otel_kit.jobs.recorder import get_recorder


@dataclass(frozen=True, slots=True)
class Reason:
    """Why RQ publishes a job that was published before.

    Attributes:
        trigger: None: whatever the calling code is.
        again: Whether it is the next attempt of the same run, and not a run of its own.
        linked: Whether its run starts a trace of its own although it waits for nothing.
    """

    trigger: Trigger | None = None
    again: bool = True
    linked: bool = False


RETRY = Reason(Trigger.RETRY)
REQUEUE = Reason()
REPEAT = Reason(Trigger.SCHEDULE, again=False, linked=True)

_reason: ContextVar[Reason | None] = ContextVar("otel_kit_rq_reason", default=None)
_trigger: ContextVar[Trigger | None] = ContextVar("otel_kit_rq_trigger", default=None)
_schedule: ContextVar[str | None] = ContextVar("otel_kit_rq_schedule", default=None)
# Publications whose end somebody further out decides: RQ fills a pipeline first and sends it later.
_held: ContextVar[ExitStack | None] = ContextVar("otel_kit_rq_held", default=None)
_batch: ContextVar[ExitStack | None] = ContextVar("otel_kit_rq_batch", default=None)


def because(reason: Reason | None) -> Callable[..., Any]:
    """A wrapper around what publishes a job anew for this reason; None: around what only moves other jobs on."""

    def wrapper(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
        token = _reason.set(reason)
        try:
            return wrapped(*args, **kwargs)
        finally:
            _reason.reset(token)

    return wrapper


def enqueue_job(wrapped: Callable[..., Any], queue: Any, args: Any, kwargs: Any) -> Any:
    """``enqueue``, ``enqueue_call`` and ``enqueue_job``."""

    def publish(stack: ExitStack) -> None:
        given = _arguments(wrapped, args, kwargs)
        job = given["job"]
        if given.get("unique") and job._id is None:  # noqa: SLF001 - asking for its id would give it one
            return
        # A job that was fetched and has run is handed over once more; one that only got another's meta is new.
        _open(stack, queue, job, REQUEUE if job.started_at is not None else None)

    return wrapped(*args, **kwargs) if not queue.is_async else _sending(wrapped, args, kwargs, publish)


def schedule_job(wrapped: Callable[..., Any], queue: Any, args: Any, kwargs: Any) -> Any:
    """``enqueue_at`` and ``enqueue_in``, and whatever RQ puts off."""

    def publish(stack: ExitStack) -> None:
        given = _arguments(wrapped, args, kwargs)
        job = given["job"]
        if given.get("unique") and job._id is None:  # noqa: SLF001 - as above
            return
        # RQ takes a time without a zone for local time, as timestamp() does.
        _open(stack, queue, job, _reason.get(), start_at=given["datetime"].timestamp())

    return _sending(wrapped, args, kwargs, publish)


def enqueue_anew(wrapped: Callable[..., Any], queue: Any, args: Any, kwargs: Any) -> Any:
    """What puts a job into the queue at once, wherever it comes from."""
    reason = _reason.get()
    if reason is None:
        return wrapped(*args, **kwargs)

    def publish(stack: ExitStack) -> None:
        _open(stack, queue, _arguments(wrapped, args, kwargs)["job"], reason)

    return _sending(wrapped, args, kwargs, publish)


def enqueue_many(wrapped: Callable[..., Any], queue: Any, args: Any, kwargs: Any) -> Any:
    """A batch: each job of it is published, when `create_job` makes it."""
    if not queue.is_async:
        return wrapped(*args, **kwargs)

    def publish(stack: ExitStack) -> None:
        _batch.set(stack)

    token = _batch.set(None)
    try:
        return _sending(wrapped, args, kwargs, publish)
    finally:
        _batch.reset(token)


def create_job(wrapped: Callable[..., Any], queue: Any, args: Any, kwargs: Any) -> Any:
    """A job of a batch must have its headers before it is saved, which one that waits for others is in two steps."""
    job = wrapped(*args, **kwargs)
    stack = _batch.get()
    if stack is not None:
        with guard("rq: a job of a batch"):
            _open(stack, queue, job, None, linked=True)
    return job


def holding(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    """Around what fills a pipeline and sends it: what is published inside ends with it."""
    stack = ExitStack()
    token = _held.set(stack)
    try:
        with suppress_instrumentation():
            return _ending(stack, wrapped, args, kwargs)
    finally:
        _held.reset(token)


def cron(wrapped: Callable[..., Any], cron_job: Any, args: Any, kwargs: Any) -> Any:
    """RQ's own cron publishes; the schedule goes along, for the worker to know by when the next success is due."""
    triggered, scheduled = None, None
    with guard("rq: a cron job"):
        # `cron` is an expression; without it the job has an interval.
        triggered = _trigger.set(Trigger.CRON if cron_job.cron else Trigger.SCHEDULE)
        scheduled = _schedule.set(str(cron_job.cron or cron_job.interval))
    try:
        return holding(wrapped, cron_job, args, kwargs)
    finally:
        if triggered is not None:
            _trigger.reset(triggered)
        if scheduled is not None:
            _schedule.reset(scheduled)


def _sending(wrapped: Callable[..., Any], args: Any, kwargs: Any, publish: Callable[[ExitStack], None]) -> Any:
    held = _held.get()
    stack = held if held is not None else ExitStack()
    with guard("rq: a publish"):
        publish(stack)
    with suppress_instrumentation():
        return wrapped(*args, **kwargs) if held is not None else _ending(stack, wrapped, args, kwargs)


def _ending(stack: ExitStack, wrapped: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        # The error is the caller's and is raised below; here it only ends the spans.
        with guard("rq: ending a failed publish"):
            try:
                stack.__exit__(type(error), error, error.__traceback__)
            except BaseException as raised:
                if raised is not error:
                    raise
        raise
    with guard("rq: ending a publish"):
        stack.close()
    return result


def _open(
    stack: ExitStack,
    queue: Any,
    job: Any,
    reason: Reason | None,
    *,
    start_at: float | None = None,
    linked: bool = False,
) -> None:
    """Begin a publish and lay its headers into the job."""
    again = reason is not None and reason.again
    linked = linked or (reason is not None and reason.linked)
    attempt = (runs.attempt(job.id) or messages.attempt_of(job)) + 1 if again else 1
    # Read before they are replaced: what another attempt leaves behind, and what the application copied from elsewhere.
    previous = _previous(job) if reason is not None else None
    name = messages.name_of(job) if again else messages.name_of_new(job)
    published = Job(
        name=name,
        id=job.id,
        queue=queue.name,
        system=messages.SYSTEM,
        attempt=attempt,
        ready_at=start_at,
        delayed=start_at is not None,
    )
    trigger = reason.trigger if reason is not None and reason.trigger is not None else _trigger.get()
    publication = stack.enter_context(get_recorder().publishing(published, trigger))
    headers: dict[str, str] = {}
    publication.inject(headers, previous)
    headers |= {messages.NAME_HEADER: name, messages.ATTEMPT_HEADER: str(attempt)}
    headers[messages.WORKER_HEADER] = job.worker_name or ""
    schedule = _schedule.get()
    if start_at is not None:
        headers[messages.START_AT_HEADER] = repr(start_at)
    if linked:
        headers[messages.LINKED_HEADER] = "1"
    if schedule is not None:
        headers[messages.SCHEDULE_HEADER] = schedule
    messages.put_headers(job, headers)
    if reason is RETRY:
        runs.retried(job.id)


def _previous(job: Any) -> SpanContext | None:
    """The attempt before this one, if its run is known here; else the publish that it came from, which is in its trace."""
    run = runs.context(job.id)
    if run is not None:
        return run
    sent = propagation.extract(messages.job_of(job))
    found = trace.get_current_span(sent).get_span_context()
    return found if found.is_valid else None


def _arguments(wrapped: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    return inspect.signature(wrapped).bind(*args, **kwargs).arguments
