"""A producer: `python shop.py 10` takes ten orders, each of which wants a receipt."""

import asyncio
import os
import sys

import otel_kit

otel_kit.configure("shop")

from arq import create_pool  # noqa: E402
from arq.connections import RedisSettings  # noqa: E402
from opentelemetry import trace  # noqa: E402


async def main(orders: int) -> None:
    redis = await create_pool(RedisSettings.from_dsn(os.environ.get("REDIS_URL", "redis://localhost:6379/0")))
    for order in range(orders):
        with trace.get_tracer("shop").start_as_current_span("order"):
            await redis.enqueue_job("send_receipt", order)
    await redis.aclose()


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
