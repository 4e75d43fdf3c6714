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
from otel_kit.integrations.celery import run_ids, schedules
from otel_kit.integrations.celery.messages import is_plumbing, name_of, retries_of, system, when
from otel_kit.jobs import propagation
from otel_kit.jobs.model import Job, Trigger
from otel_kit.jobs.recorder import Publication, current_run, get_recorder


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
                queue = name_of(kwargs.get("queue")) or app.conf.task_default_queue
                job = Job(name, str(kwargs.get("task_id") or ""), queue, system(app))
                if not is_plumbing(name):
                    publication = get_recorder().publishing(job, schedules.trigger.get())
                    publishing.publication = publishing.stack.enter_context(publication)
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
        run_ids.forget(headers)
        if is_plumbing(sender):
            # Nothing of its own, but what it carries goes on in the trace that it came from.
            propagation.inject(headers, Trigger.MANUAL)
            return
        queue = declare[0].name if declare else (routing_key or "unknown")
        retries = retries_of(headers.get("retries"))
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
        trigger = Trigger.RETRY if retries else schedules.trigger.get()
        publication = publishing.stack.enter_context(get_recorder().publishing(job, trigger))
        publishing.publication = publication
        headers[catalogue.QUEUE_HEADER] = queue
        run = current_run()
        publication.inject(headers, run.context if retries and run is not None and run.job.id == job.id else None)
