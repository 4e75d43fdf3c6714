"""The suite's jobs in Dramatiq. Named like the framework here, it is copied to ``app.py`` before it runs."""

from __future__ import annotations

import os
import signal
import time

import otel_kit

otel_kit.configure()

import dramatiq  # noqa: E402 - telemetry first
from dramatiq.brokers.redis import RedisBroker  # noqa: E402
from dramatiq.middleware import CurrentMessage  # noqa: E402

QUEUE = "suite"
broker = RedisBroker(url=os.environ["BROKER"])
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=QUEUE)
def succeed(number: int = 0) -> None:
    pass


@dramatiq.actor(queue_name=QUEUE, max_retries=0)
def fail() -> None:
    raise ZeroDivisionError("on purpose")


class NotYetError(dramatiq.Retry, ConnectionError):
    """Says when it is to be tried again; Dramatiq's own backoff is random."""


@dramatiq.actor(queue_name=QUEUE, max_retries=1)
def retry_once() -> None:
    message = CurrentMessage.get_current_message()
    if message is not None and not message.options.get("retries"):
        raise NotYetError("not yet", delay=300)


@dramatiq.actor(queue_name=QUEUE)
def slow(seconds: float) -> None:
    time.sleep(seconds)


@dramatiq.actor(queue_name=QUEUE)
def die() -> None:
    time.sleep(1)  # what it has said so far is on its way
    os.kill(os.getpid(), signal.SIGKILL)


@dramatiq.actor(queue_name=QUEUE)
def nested() -> None:
    succeed.send(1)


# A queue of its own, so that the suite's holds what it has put there and nothing else.
@dramatiq.actor(queue_name="periodic")
def periodic() -> None:
    pass


def publish(name: str, *arguments: object, delay: float | None = None, priority: int | None = None) -> None:
    """Hand a job to the broker by its name."""
    message: dramatiq.Message[None] = dramatiq.Message(QUEUE, name, arguments, {}, {})
    broker.enqueue(message, delay=None if delay is None else int(delay * 1000))


def schedule() -> None:
    """Send at its time what is due, as Dramatiq's own guide does it: with APScheduler."""
    from apscheduler.schedulers.blocking import BlockingScheduler

    scheduler = BlockingScheduler()
    if os.environ.get("PERIODIC") == "1":
        scheduler.add_job(periodic.send, "interval", seconds=1, id="every-second", name="every-second")
    print("scheduler is ready", flush=True)
    scheduler.start()
