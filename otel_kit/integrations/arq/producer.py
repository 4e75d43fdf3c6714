"""The producer's side: every publish goes through `ArqRedis.enqueue_job`.

The span opens when arq serializes the job, for only then it is known that no other job has the same id, and closes whatever
happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit.guard import guard
from otel_kit.integrations.arq import carrier
from otel_kit.jobs.model import Job, Trigger
from otel_kit.jobs.recorder import Publication, current_run, get_recorder

SYSTEM: Final = "redis"

#: What has made the job that is being published, where arq itself did.
trigger: ContextVar[Trigger | None] = ContextVar("otel_kit_arq_trigger", default=None)


@dataclass(slots=True)
class _Publishing:
    """One call of enqueue_job."""

    job: Job
    deserializer: carrier.Deserializer | None
    stack: ExitStack = field(default_factory=ExitStack)
    publication: Publication | None = None

    def open(self) -> Publication:
        if self.publication is None:
            cause = Trigger.RETRY if self.job.attempt > 1 else trigger.get()
            self.publication = self.stack.enter_context(get_recorder().publishing(self.job, cause))
        return self.publication

    def headers(self) -> dict[str, str]:
        run = current_run()
        retries = run is not None and self.job.attempt > 1 and run.job.name == self.job.name
        found: dict[str, str] = {}
        self.open().inject(found, run.context if run is not None and retries else None)
        return found

    def close(self, *, enqueued: bool) -> None:
        if self.publication is not None and not enqueued:
            # Redis found out only at the end that another was quicker with the same id.
            self.publication.discard()
        self.stack.close()

    def fail(self, error: BaseException) -> None:
        self.open()  # also where it failed before arq came to serialize it
        try:
            self.stack.__exit__(type(error), error, error.__traceback__)
        except BaseException as raised:
            if raised is not error:  # the caller gets it from arq; here it only ends the span
                raise


_publishing: ContextVar[_Publishing | None] = ContextVar("otel_kit_arq_publishing", default=None)


async def enqueue_job(wrapped: Callable[..., Any], pool: Any, args: Any, kwargs: Any) -> Any:
    publishing: _Publishing | None = None
    with guard("arq: before a publish"):
        # arq's own way to make one, a moment earlier: the span needs it.
        kwargs = {**kwargs, "_job_id": kwargs.get("_job_id") or uuid4().hex}
        publishing = _Publishing(_job(pool, args, kwargs), getattr(pool, "job_deserializer", None))
    token = _publishing.set(publishing)
    try:
        # Its own commands make no spans: the span of the publish tells of them.
        with suppress_instrumentation():
            enqueued = await wrapped(*args, **kwargs)
    except BaseException as error:
        with guard("arq: ending a failed publish"):
            if publishing is not None:
                publishing.fail(error)
        raise
    else:
        with guard("arq: ending a publish"):
            if publishing is not None:
                publishing.close(enqueued=enqueued is not None)
        return enqueued
    finally:
        _publishing.reset(token)


def serialize_job(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    publishing = _publishing.get()
    if publishing is not None:
        with guard("arq: writing headers"):
            writing = carrier.writing(publishing.headers(), kwargs.get("serializer"), publishing.deserializer)
            kwargs = {**kwargs, "serializer": writing}
    return wrapped(*args, **kwargs)


async def quietly(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    """What asks Redis again and again, and makes no span of each time."""
    with suppress_instrumentation():
        return await wrapped(*args, **kwargs)


def _job(pool: Any, args: Any, kwargs: Any) -> Job:
    now = time.time()
    start_at = _wanted_start(kwargs, now)
    # A cron job is enqueued a second ahead: that is arq's way to be punctual, and nobody's wish for a delay.
    delayed = start_at is not None and start_at > now and trigger.get() is not Trigger.CRON
    return Job(
        name=str(args[0] if args else kwargs.get("function", "unknown")),
        id=str(kwargs["_job_id"]),
        queue=str(kwargs.get("_queue_name") or pool.default_queue_name),
        system=SYSTEM,
        attempt=max(1, int(kwargs.get("_job_try") or 1)),
        ready_at=start_at,
        delayed=delayed,
    )


def _wanted_start(kwargs: Any, now: float) -> float | None:
    until, by = kwargs.get("_defer_until"), kwargs.get("_defer_by")
    if isinstance(until, datetime):
        return until.timestamp()
    if not by:
        return None
    return now + (by.total_seconds() if isinstance(by, timedelta) else float(by))
