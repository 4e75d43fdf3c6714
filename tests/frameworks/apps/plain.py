"""The suite's jobs as plain functions, called in scripts and in a loop. It is copied to ``app.py`` before it runs."""

from __future__ import annotations

import contextlib
import os
import time

import otel_kit

otel_kit.configure()

from otel_kit import job  # noqa: E402 - telemetry first


def succeed(number: int = 0) -> None:
    pass


def fail() -> None:
    raise ZeroDivisionError("on purpose")


def slow(seconds: float) -> None:
    time.sleep(seconds)


def nested() -> None:
    publish("succeed", 1)


def publish(name: str, *arguments: object, delay: float | None = None, priority: int | None = None) -> None:
    """Call a job by its name, as a script does."""
    with contextlib.suppress(ZeroDivisionError):
        job(name)(globals()[name])(*arguments)


def work() -> None:
    """Call the periodic job every second until somebody stops it."""

    @job("periodic", schedule=1)
    def periodic() -> None:
        pass

    print("ready", flush=True)
    while True:
        if os.environ.get("PERIODIC") == "1":
            periodic()
        time.sleep(1)


if __name__ == "__main__":
    work()
