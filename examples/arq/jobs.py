"""The worker: `arq jobs.WorkerSettings`."""

import asyncio
import os
import random
from typing import Any, ClassVar

import otel_kit

otel_kit.configure("mailer")

from arq import Retry, cron, func  # noqa: E402
from arq.connections import RedisSettings  # noqa: E402


async def send_receipt(ctx: dict[str, Any], order: int) -> str:
    """Sends one mail; the mail server is busy now and then."""
    await asyncio.sleep(0.05)
    if random.random() < 0.2:
        raise Retry(defer=1) from ConnectionError("the mail server is busy")
    await ctx["redis"].incr("receipts")
    return f"receipt of order {order} sent"


async def close_the_books(ctx: dict[str, Any]) -> None:
    """Wanted every minute: `job.deadline.time` says by when it has to have succeeded again."""
    await ctx["redis"].getset("receipts", 0)


class WorkerSettings:
    """What arq looks at."""

    redis_settings = RedisSettings.from_dsn(os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
    functions: ClassVar[list[Any]] = [func(send_receipt, timeout=30, max_tries=5)]
    cron_jobs: ClassVar[list[Any]] = [cron(close_the_books, name="close_the_books", second=0, timeout=20)]
