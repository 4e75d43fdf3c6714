"""What a worker says of itself when it is ready: its jobs, its slots, its signs of life, its queues."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from otel_kit.guard import guard
from otel_kit.integrations.celery import queues, recovery, schedules
from otel_kit.integrations.celery.messages import set_pool_limits, time_limit
from otel_kit.jobs.recorder import get_recorder

#: Seconds between two signs of life of the worker's loop.
_PULSE: Final = 1.0


def worker_ready(sender: Any, **_kwargs: Any) -> None:
    """Celery's signal; its sender is the consumer."""
    for name, say in (
        ("its jobs", _jobs),
        ("its slots", _slots),
        ("its loop", _pulse),
        ("its schedule", _schedule),
        ("its queues", _queues),
    ):
        with guard(f"celery: a worker tells {name}"):
            say(sender)


def _jobs(consumer: Any) -> None:
    app, tally = consumer.app, get_recorder().tally
    controller = consumer.controller
    set_pool_limits(getattr(controller, "time_limit", None), getattr(controller, "soft_time_limit", None))
    consumed = set(app.amqp.queues.consume_from)
    for name, task in app.tasks.items():
        if name.startswith("celery."):
            continue
        options = {"queue": task.queue} if getattr(task, "queue", None) else {}
        queue = app.amqp.router.route(options, name, task_type=task).get("queue")
        if queue is None or queue.name not in consumed:
            continue
        tally.expect(name, queue.name)
        limit = time_limit(None, task)
        if limit is not None:
            tally.limit(name, limit)


def _slots(consumer: Any) -> None:
    pool = consumer.pool
    last = [int(pool.num_processes)]

    def slots() -> int:
        # The pool's own number: autoscale and remote control change it. At its end the pool has none any more.
        if getattr(pool, "active", True):
            last[0] = int(pool.num_processes)
        return last[0]

    get_recorder().tally.pool(list(consumer.app.amqp.queues.consume_from), slots)


def _pulse(consumer: Any) -> None:
    recorder = get_recorder()
    if type(consumer.pool).__module__.endswith(".solo"):
        # The job runs in the loop: that it stands still meanwhile is no fault.
        last = [time.time()]
        recorder.tally.beat("loop", lambda: time.time() if len(recorder.running) else last[0])

        def beat() -> None:
            last[0] = time.time()
    else:

        def beat() -> None:
            recorder.tally.beat("loop")

    beat()
    if consumer.hub is not None:
        consumer.timer.call_repeatedly(_PULSE, beat)
    else:
        # Without a hub the timer is a thread of its own, and says nothing of the loop, which looks here at each turn.
        consumer.otel_kit_beat = beat


def loop_turn(wrapped: Callable[..., Any], consumer: Any, args: Any, kwargs: Any) -> Any:
    """A turn of the loop of a worker without a hub: every 2 seconds or more often."""
    beat = vars(consumer).get("otel_kit_beat")
    if beat is not None:
        with guard("celery: a sign of life"):
            beat()
    return wrapped(*args, **kwargs)


def _schedule(consumer: Any) -> None:
    # Deadlines count from the last success, which this process sees and beat does not.
    app = consumer.app
    schedules.announce(app, schedules.entries_of(app), only=set(app.tasks))


def _queues(consumer: Any) -> None:
    app = consumer.app
    queues.watch(app, list(app.amqp.queues.consume_from.values()))
    recovery.keep_leases(app)
