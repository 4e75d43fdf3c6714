"""The suite's jobs in arq."""

import asyncio
import logging
import os
import signal
from typing import Any, ClassVar

import otel_kit

otel_kit.configure(os.environ.get("OTEL_SERVICE_NAME", "worker"))

from arq import ArqRedis, Retry, cron, func  # noqa: E402 - what is instrumented is imported as any application would
from arq.connections import RedisSettings  # noqa: E402
from redis.asyncio import ConnectionPool  # noqa: E402

BROKER = os.environ["BROKER"]
QUEUE = "suite"


async def succeed(_ctx: dict[str, Any], _number: int = 0) -> None:
    """Nothing to do."""


async def fail(_ctx: dict[str, Any]) -> None:
    raise ZeroDivisionError("on purpose")


async def retry_once(ctx: dict[str, Any]) -> None:
    if ctx["job_try"] == 1:
        raise Retry(defer=0.3) from ConnectionError("not yet")


async def slow(_ctx: dict[str, Any], seconds: float) -> None:
    await asyncio.sleep(seconds)


async def die(_ctx: dict[str, Any]) -> None:
    await asyncio.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


async def nested(ctx: dict[str, Any]) -> None:
    await ctx["redis"].enqueue_job("succeed")


async def periodic(_ctx: dict[str, Any]) -> None:
    """Nothing to do."""


def publish(name: str, *arguments: Any, delay: float | None = None, priority: int | None = None) -> None:
    """Enqueue a job; arq knows no priorities."""
    _loop.run_until_complete(_pool.enqueue_job(name, *arguments, _defer_by=delay))


_loop = asyncio.new_event_loop()
_pool = ArqRedis(ConnectionPool.from_url(BROKER), default_queue_name=QUEUE)


async def begin(_ctx: dict[str, Any]) -> None:
    # What arq says of each job belongs to the job as well; the suite looks at our events alone.
    logging.getLogger("arq.worker").setLevel(logging.WARNING)
    print("the worker is ready", flush=True)


class WorkerSettings:
    """What `arq app.WorkerSettings` runs."""

    redis_settings = RedisSettings.from_dsn(BROKER)
    queue_name = QUEUE
    functions: ClassVar[list[Any]] = [
        func(each, name=each.__name__) for each in (succeed, fail, retry_once, slow, die, nested)
    ]
    on_startup = begin
    max_jobs = 4
    poll_delay = 0.02


class SchedulerSettings:
    """Cron jobs have a worker and a queue of their own, so that whatever is busy delays none of them."""

    redis_settings = WorkerSettings.redis_settings
    queue_name = f"{QUEUE}:cron"
    cron_jobs: ClassVar[list[Any]] = [cron(periodic, name="periodic", second=set(range(60)))]
    on_startup = begin
    poll_delay = 0.02
