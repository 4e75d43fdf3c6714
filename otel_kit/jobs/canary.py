"""A canary: a job that does nothing, sent through a real queue again and again, so that its wait and its absence are seen.

    otel_kit.jobs.canary.canary(lambda: celery.send_task(canary_name("email"), queue="email"), queue="email")

The depth of a queue does not tell whether anybody takes from it, nor how long that takes; a job that came through does.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from otel_kit.jobs.decorator import job
from otel_kit.lifecycle import lifecycle

_logger = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])

#: Intervals after the last canary's arrival at which the next is overdue.
OVERDUE_AFTER: Final = 3
_LONGEST_INTERVAL: Final = 86_400.0
_LONGEST_QUEUE: Final = 180


def canary_name(queue: str) -> str:
    """The name of the job that is a queue's canary."""
    return f"canary.{queue}"


def canary_job(queue: str, interval: float = 60.0) -> Callable[[F], F]:
    """Declare the function that receives a queue's canaries, in the worker: its body has nothing to do.

    The framework's own decorator comes on top of it. `job.deadline.time` is then the last arrival and three intervals.

    Args:
        queue: The queue's name.
        interval: Seconds between two canaries, as `canary` has it.

    Raises:
        ValueError: An argument has a value that it does not take.
    """
    _check(queue, interval)
    return job(canary_name(queue), schedule=float(interval), grace=(OVERDUE_AFTER - 1) * float(interval))


class Canary:
    """Sends a queue's canaries: see `canary`."""

    def __init__(self, publish: Callable[[], object], queue: str, interval: float) -> None:
        self.queue = queue
        self.interval = interval
        self._publish = publish
        self._stop = threading.Event()
        self._failing_since: float | None = None

    def start(self) -> None:
        """Begin sending, on a thread of its own."""
        self._stop = threading.Event()
        name = f"otel-kit-canary-{self.queue}"
        threading.Thread(target=self._run, args=(self._stop,), name=name, daemon=True).start()

    def stop(self) -> None:
        """Send no more. One that is being sent is not waited for."""
        self._stop.set()

    def _run(self, stop: threading.Event) -> None:
        # Processes that start together do not all send at the same moment, nor in step with what runs every minute.
        pause = random.uniform(0, self.interval / 10)
        while not stop.wait(pause):
            began = time.monotonic()
            self._send()
            pause = max(0.0, self.interval * random.uniform(0.9, 1.0) - (time.monotonic() - began))

    def _send(self) -> None:
        try:
            self._publish()
        except Exception as error:  # noqa: BLE001 - the broker's client raises what it likes, and none of it is ours to pass on
            if self._failing_since is None:
                self._failing_since = time.monotonic()
                _logger.disabled = False  # dictConfig switches off every logger that it does not name
                _logger.warning(
                    "otel-kit: the canary of queue %s cannot be sent (%s: %s); it is tried on, and this is said once per outage",
                    self.queue, type(error).__name__, error,
                )  # fmt: skip
            return
        if self._failing_since is not None:
            lasted, self._failing_since = time.monotonic() - self._failing_since, None
            _logger.warning("otel-kit: the canary of queue %s can be sent again after %.0f s", self.queue, lasted)


_canaries: dict[str, Canary] = {}
_lock = threading.RLock()


def canary(publish: Callable[[], object], queue: str = "default", interval: float = 60.0) -> Canary:
    """Send a canary through a queue at an interval, from now to the process's end. Never two at once, and it never raises.

    A process sends one canary for each queue: further calls for the same queue give back the one that flies. Forked children
    send none of their own.

    Args:
        publish: Hands the job `canary_name` (queue) to the framework; called on a thread of ours, may block, may raise.
        queue: The queue's name.
        interval: Seconds from one to the next; up to a tenth less by chance.

    Raises:
        ValueError: An argument has a value that it does not take; the message names both.
        TypeError: ``publish`` cannot be called.
    """
    if not callable(publish):
        raise TypeError(
            f"publish={publish!r} is not accepted; accepted: a function without arguments that sends one job"
        )
    _check(queue, interval)
    with _lock:
        flying = _canaries.get(queue)
        if flying is not None:
            return flying
        made = _canaries[queue] = Canary(publish, queue, float(interval))
        if len(_canaries) == 1:
            lifecycle.on_child("canaries", _forget)
            lifecycle.on_renewal(_renew)
            lifecycle.on_close(_stop_all)
    made.start()
    return made


def _check(queue: str, interval: float) -> None:
    if not isinstance(queue, str) or not 0 < len(queue) <= _LONGEST_QUEUE:
        raise ValueError(f"queue={queue!r} is not accepted; accepted: a queue's name, 1 to {_LONGEST_QUEUE} characters")
    number = isinstance(interval, (int, float)) and not isinstance(interval, bool)
    if not number or not 0.1 <= interval <= _LONGEST_INTERVAL:
        raise ValueError(
            f"interval={interval!r} is not accepted; accepted: seconds, from 0.1 to {_LONGEST_INTERVAL:.0f}"
        )


def _forget() -> None:
    global _lock
    _lock = threading.RLock()
    _canaries.clear()


def _renew() -> None:
    for each in list(_canaries.values()):
        each.stop()
        each.start()


def _stop_all() -> None:
    for each in list(_canaries.values()):
        each.stop()
    _canaries.clear()
