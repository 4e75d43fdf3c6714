"""`otel-kit demo`: see one request and every job, without setting anything up."""

from __future__ import annotations

import time

import click


@click.command()
@click.option("--stack", "on_stack", is_flag=True, help="Send to the running stack and check every backend.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for the telemetry.")
@click.option("--duration", default=15.0, show_default=True, help="With --stack: seconds of traffic before checking.")
@click.option("--keep", is_flag=True, help="With --stack: go on with traffic after the checks, until Ctrl-C.")
@click.option("--seed", default=7, show_default=True, help="The same seed gives the same messages.")
@click.option("--redis", metavar="PROGRAM", help="Redis server to use instead of the first one found.")
def demo(on_stack: bool, timeout: float, duration: float, keep: bool, seed: int, redis: str | None) -> None:
    """Run a small system (bot, gateway, queue, worker, scheduler) and show its traces, jobs and logs.

    Needs no Docker and no backend. Exit code: 0 when all that is promised was seen, 1 when something was missing,
    2 when a part could not be started.
    """
    from rich.console import Console

    from otel_kit.demo import render
    from otel_kit.demo.processes import PartFailedError, signals_unwind

    if timeout <= 0:
        raise click.BadParameter(f"--timeout is {timeout:g}, and must be above 0 seconds")
    if keep and not on_stack:
        raise click.UsageError("--keep needs --stack: without it there is nothing to look around in")
    console = Console(highlight=False)
    began = time.monotonic()
    try:
        with signals_unwind():
            if on_stack:
                from otel_kit.demo.on_stack import run_on_stack

                complete = run_on_stack(console, timeout=timeout, duration=duration, keep=keep, seed=seed, redis=redis)
            else:
                from otel_kit.demo.embedded import run_embedded

                complete = run_embedded(console, count=30, seed=seed, timeout=timeout, redis=redis)
    except PartFailedError as error:
        console.print(render.failure(error), soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        console.print("\nstopped; nothing is left running")
        raise SystemExit(130) from None
    console.print(f"\n{time.monotonic() - began:.1f} s in all; nothing is left running.")
    if not on_stack:
        console.print("The same in Grafana: otel-kit stack up (or make stack), then otel-kit demo --stack")
    raise SystemExit(0 if complete else 1)
