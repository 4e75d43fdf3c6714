"""The producer's side: every publish goes through the ``enqueue`` of a broker.

Also that of a worker which sends a retry, or the next step of a pipeline. A worker that puts a delayed message into its
queue when it is due publishes nothing: that message was published before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from otel_kit.guard import guard
from otel_kit.integrations.dramatiq.messages import DUE, OPTION, attempt_of, headers_of, queue_of, seconds, system
from otel_kit.jobs.model import Job, Trigger
from otel_kit.jobs.recorder import Publication, current_run, get_recorder


@dataclass(slots=True)
class Ending:
    """A run whose end the middleware deals with; whether one of them has sent the message again."""

    message_id: str
    sent_again: bool = False


#: What periodiq's scheduler says of the messages that it sends.
_SCHEDULED_AT: Final = "scheduled_at"
#: Ids of the messages that are being published here: a broker's ``enqueue`` may call that of its base class.
_under_way: ContextVar[tuple[str, ...]] = ContextVar("otel_kit_dramatiq_under_way", default=())
_forwarding: ContextVar[bool] = ContextVar("otel_kit_dramatiq_forwarding", default=False)
_ending: ContextVar[Ending | None] = ContextVar("otel_kit_dramatiq_ending", default=None)


@contextmanager
def forwarding() -> Iterator[None]:
    """Delayed messages that are due are put into their queue: no publish."""
    token = _forwarding.set(True)
    try:
        yield
    finally:
        _forwarding.reset(token)


@contextmanager
def ending(message_id: str) -> Iterator[Ending]:
    """Watch whether a message is sent again."""
    watched = Ending(message_id)
    token = _ending.set(watched)
    try:
        yield watched
    finally:
        _ending.reset(token)


def enqueue(wrapped: Callable[..., Any], broker: Any, args: Any, kwargs: Any) -> Any:
    message = args[0] if args else kwargs.get("message")
    if message is None or message.message_id in _under_way.get() or _is_forwarded(message):
        return wrapped(*args, **kwargs)
    stack = ExitStack()
    with guard("dramatiq: a publish"):
        job = _job(broker, message, kwargs.get("delay"))
        publication = stack.enter_context(get_recorder().publishing(job, _trigger(job, message)))
        args, kwargs = _with_message(args, kwargs, _with_headers(message, publication))
    token = _under_way.set((*_under_way.get(), message.message_id))
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        # The error is the caller's and is raised below; here it only ends the span.
        with guard("dramatiq: ending a failed publish"):
            _close(stack, error)
        raise
    finally:
        _under_way.reset(token)
    with guard("dramatiq: ending a publish"):
        stack.close()
    watched = _ending.get()
    if watched is not None and watched.message_id == message.message_id:
        watched.sent_again = True
    return result


def _is_forwarded(message: Any) -> bool:
    return _forwarding.get() and DUE in headers_of(message.options)


def _job(broker: Any, message: Any, delay: object) -> Job:
    wanted = seconds(delay)
    return Job(
        name=message.actor_name,
        id=message.message_id,
        queue=queue_of(message.queue_name),
        system=system(broker),
        attempt=attempt_of(message.options),
        ready_at=None if wanted is None else time.time() + wanted,
        delayed=wanted is not None,
    )


def _trigger(job: Job, message: Any) -> Trigger | None:
    if job.attempt > 1:
        return Trigger.RETRY
    if _SCHEDULED_AT in message.options:
        return Trigger.CRON
    run = current_run()
    # Dramatiq has no scheduler of its own: what others run at a time, to send a message, says what that came from.
    at_its_time = run is not None and not run.job.system and run.job.trigger in (Trigger.CRON, Trigger.SCHEDULE)
    return run.job.trigger if run is not None and at_its_time else None


def _with_headers(message: Any, publication: Publication) -> Any:
    # A copy: whoever made the message may publish it again, and a retry's old headers are not to be kept.
    headers: dict[str, str] = {}
    run = current_run()
    before = run.context if run is not None and run.job.id == message.message_id else None
    publication.inject(headers, before if publication.job.attempt > 1 else None)
    return message.copy(options={OPTION: headers})


def _with_message(args: Any, kwargs: Any, message: Any) -> tuple[Any, Any]:
    return ((message, *args[1:]), kwargs) if args else (args, {**kwargs, "message": message})


def _close(stack: ExitStack, error: BaseException) -> None:
    try:
        stack.__exit__(type(error), error, error.__traceback__)
    except BaseException as raised:
        if raised is not error:
            raise
