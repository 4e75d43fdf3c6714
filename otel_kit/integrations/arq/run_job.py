"""The places in arq where one delivery passes by, from `Worker.run_job` to what that writes back.

All but the job's function itself run in the task of that one call of `run_job`, so a context that is attached in between is
the job's and nobody else's.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit.guard import guard
from otel_kit.integrations.arq import attempts, carrier
from otel_kit.integrations.arq.delivery import Delivery
from otel_kit.jobs.recorder import Run

_delivery: ContextVar[Delivery | None] = ContextVar("otel_kit_arq_delivery", default=None)


def current() -> Delivery | None:
    """The delivery that the calling task is about."""
    return _delivery.get()


async def run_job(wrapped: Callable[..., Any], worker: Any, args: Any, kwargs: Any) -> Any:
    delivery: Delivery | None = None
    with guard("arq: a delivery"):
        delivery = Delivery(worker, *args, **kwargs)
    token = _delivery.set(delivery)
    try:
        return await wrapped(*args, **kwargs)
    except BaseException as error:
        with guard("arq: a delivery that broke off"):
            if delivery is not None:
                delivery.broke_off(error)
        raise
    finally:
        with guard("arq: the end of a delivery"):
            if delivery is not None:
                delivery.leave()
        _delivery.reset(token)


def deserialize_job_raw(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    delivery = _delivery.get()
    if delivery is None:
        return wrapped(*args, **kwargs)
    reading = carrier.reading(kwargs.get("deserializer"), delivery.has_headers)
    job = wrapped(*args, **{**kwargs, "deserializer": reading})
    with guard("arq: reading a job"):
        delivery.read(str(job[0]), int(job[4]))
    return job


def serialize_result(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    delivery = _delivery.get()
    if delivery is not None:
        with guard("arq: reading a result"):
            told = dict(zip(_RESULT, args, strict=False)) | kwargs
            if isinstance(told["result"], BaseException) and not told["success"]:
                delivery.ends_with(int(told["job_try"]), told["result"])
    return wrapped(*args, **kwargs)


_RESULT: Final = ("function", "args", "kwargs", "job_try", "enqueue_time_ms", "success", "result")


def finish_job(wrapped: Callable[..., Any], worker: Any, args: Any, kwargs: Any) -> Any:
    """Runs in the job's task, unlike the coroutine that it returns."""
    delivery = _delivery.get()
    repeated: Run | None = None
    with guard("arq: the end of a run"):
        if delivery is not None:
            repeated = delivery.finish(finally_=bool(kwargs.get("finish", args[1] if len(args) > 1 else True)))
    if repeated is None:
        return _finish(wrapped(*args, **kwargs))
    delay = (kwargs.get("incr_score", args[5] if len(args) > 5 else None) or 0) / 1000
    note = attempts.leave(worker.pool, repeated.job.id, repeated.context, time.time(), delay)
    # Before arq lets go of the job: a quick worker takes it at once.
    return _finish(note, wrapped(*args, **kwargs))


async def _finish(*steps: Awaitable[None]) -> None:
    with suppress_instrumentation():
        for step in steps:
            await step


def finish_failed_job(wrapped: Callable[..., Any], _worker: Any, args: Any, kwargs: Any) -> Any:
    delivery = _delivery.get()
    with guard("arq: a job that never ran"):
        if delivery is not None:
            delivery.never_ran()
    return wrapped(*args, **kwargs)


def watched(function: Any) -> Any:
    """A copy of arq's `Function` or `CronJob` that tells what its coroutine raises."""
    copied = copy.copy(function)
    coroutine = function.coroutine

    @functools.wraps(coroutine)
    async def watch(*args: Any, **kwargs: Any) -> Any:
        try:
            return await coroutine(*args, **kwargs)
        except BaseException as error:
            delivery = _delivery.get()
            if delivery is not None:
                delivery.raised(error)
            raise

    copied.coroutine = watch
    return copied
