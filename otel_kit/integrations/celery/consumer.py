"""The worker's consumer: messages that never become a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from otel_kit.guard import guard
from otel_kit.integrations.celery import worker
from otel_kit.integrations.celery.messages import job_of_message
from otel_kit.jobs.model import Outcome
from otel_kit.jobs.recorder import get_recorder


def task_handler(wrapped: Callable[..., Any], consumer: Any, args: Any, kwargs: Any) -> Any:
    """Wraps what makes the function that takes every message.

    A body of another shape than a task's (a number, a list of one) is no error that Celery knows: the worker ends, the
    message comes again and ends the next one. Then at least it is known by name which message that was.
    """
    handle = wrapped(*args, **kwargs)

    def observed(message: Any) -> Any:
        try:
            return handle(message)
        except Exception as error:
            # In the solo pool the job itself runs in here.
            begun = worker.taken[0] is message
            if not begun and not isinstance(error, (*consumer.connection_errors, *consumer.channel_errors)):
                _rejected(consumer, message, error)
            raise

    return observed


def unknown_task(wrapped: Callable[..., Any], consumer: Any, args: Any, kwargs: Any) -> Any:  # (body, message, exc)
    """A task that no module of this worker defines."""
    body, message, error = args
    _rejected(consumer, message, error, body)
    return wrapped(*args, **kwargs)


def invalid_task(wrapped: Callable[..., Any], consumer: Any, args: Any, kwargs: Any) -> Any:  # (body, message, exc)
    """A message whose headers or body say what no task can take."""
    body, message, error = args
    _rejected(consumer, message, error, body)
    return wrapped(*args, **kwargs)


def unknown_message(wrapped: Callable[..., Any], consumer: Any, args: Any, kwargs: Any) -> Any:  # (body, message)
    """A message that is no task's."""
    body, message = args
    _rejected(consumer, message, ValueError("the message is no task's"), body)
    return wrapped(*args, **kwargs)


def decode_error(wrapped: Callable[..., Any], consumer: Any, args: Any, kwargs: Any) -> Any:  # (message, exc)
    """A message whose body cannot be read."""
    message, error = args
    _rejected(consumer, message, error)
    return wrapped(*args, **kwargs)


def _rejected(consumer: Any, message: Any, error: BaseException, body: object = None) -> None:
    # Before Celery does, which talks to the result backend first.
    with guard("celery: a message that becomes no run"):
        job = job_of_message(consumer.app, message, body)
        get_recorder().tally.received(job)
        get_recorder().never_ran(job, Outcome.REJECTED, error)
