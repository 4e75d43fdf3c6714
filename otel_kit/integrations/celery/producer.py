"""The producer's side: every publish goes through `Celery.send_task`.

The span opens at the ``before_task_publish`` signal, since only there the queue is known, and closes whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from otel_kit import catalogue
from otel_kit.guard import guard
from otel_kit.integrations.celery import child
from otel_kit.integrations.celery.messages import system, when
from otel_kit.jobs.model import Job, Trigger
from otel_kit.jobs.recorder import Publication, get_recorder

_trigger: ContextVar[Trigger | None] = ContextVar("otel_kit_celery_trigger", default=None)


@dataclass(slots=True)
class _Publishing:
    """One call of send_task; the span opens when the signal tells the queue."""

    app: Any
    stack: ExitStack = field(default_factory=ExitStack)
    publication: Publication | None = None


_publishing: ContextVar[_Publishing | None] = ContextVar("otel_kit_celery_publishing", default=None)


def send_task(wrapped: Callable[..., Any], app: Any, args: Any, kwargs: Any) -> Any:
    publishing = _Publishing(app)
    token = _publishing.set(publishing)
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        with guard("celery: a failed publish"):
            if publishing.publication is None:  # it failed before it came to the queue
                name = str(args[0] if args else kwargs.get("name", "unknown"))
                job = Job(name, str(kwargs.get("task_id") or ""), str(kwargs.get("queue") or "unknown"), system(app))
                publishing.publication = publishing.stack.enter_context(get_recorder().publishing(job))
        # The error is the caller's and is raised below; here it only ends the span.
        with guard("celery: ending a failed publish"):
            _close(publishing, error)
        raise
    else:
        with guard("celery: ending a publish"):
            publishing.stack.close()
        return result
    finally:
        _publishing.reset(token)


def _close(publishing: _Publishing, error: BaseException) -> None:
    try:
        publishing.stack.__exit__(type(error), error, error.__traceback__)
    except BaseException as raised:
        if raised is not error:
            raise


def before_publish(
    sender: str,
    headers: MutableMapping[str, Any],
    routing_key: str | None = None,
    declare: Any = None,
    **_kwargs: Any,
) -> None:
    publishing = _publishing.get()
    if publishing is None or publishing.publication is not None or not isinstance(headers, MutableMapping):
        return
    with guard("celery: before_task_publish"):
        queue = declare[0].name if declare else (routing_key or "unknown")
        retries = int(headers.get("retries") or 0)
        ready_at = when(headers.get("eta"))
        job = Job(
            name=sender,
            id=str(headers.get("id", "")),
            queue=queue,
            system=system(publishing.app),
            attempt=retries + 1,
            ready_at=ready_at,
            delayed=ready_at is not None,
        )
        trigger = Trigger.RETRY if retries else _trigger.get()
        publication = publishing.stack.enter_context(get_recorder().publishing(job, trigger))
        publishing.publication = publication
        headers[catalogue.QUEUE_HEADER] = queue
        publication.inject(headers, child.attempt(job.id) if retries else None)


def beat(wrapped: Callable[..., Any], _scheduler: Any, args: Any, kwargs: Any) -> Any:
    token = _trigger.set(Trigger.SCHEDULE)
    try:
        return wrapped(*args, **kwargs)
    finally:
        _trigger.reset(token)
