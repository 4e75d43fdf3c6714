"""Takes orders for posters: python shop.py 10"""

import os
import sys
from datetime import timedelta

from jobs import print_poster
from opentelemetry import trace
from redis import Redis
from rq import Queue, Retry

import otel_kit

otel_kit.configure("shop")

tracer = trace.get_tracer("shop")
queue = Queue("posters", connection=Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")))

for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else 10):
    with tracer.start_as_current_span("order", attributes={"order.number": number}):
        queue.enqueue(print_poster, number, retry=Retry(max=5))
# One more, which is not urgent.
queue.enqueue_in(timedelta(seconds=2), print_poster, 0, retry=Retry(max=5))
