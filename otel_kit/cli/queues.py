"""`otel-kit queues`: how much waits, seen from outside of every worker."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

import otel_kit
from otel_kit.cli.lines import ago, cause, shown
from otel_kit.integrations.redis_keys import RedisLease, own_client
from otel_kit.integrations.redis_leases import leases_for, redis_url
from otel_kit.jobs.leases import keep
from otel_kit.jobs.queues import QueueSource, QueueState, watch_queue
from otel_kit.settings import without_credentials

#: The frameworks whose queues can be read by the broker's URL alone, each with an option of its own.
FRAMEWORKS: Final = {"rq": "RQ", "celery": "Celery", "arq": "arq", "dramatiq": "Dramatiq"}


@click.group()
def queues() -> None:
    """How many jobs wait in the queues, and for how long."""


def _brokers(command: Any) -> Any:
    for option, title in reversed(FRAMEWORKS.items()):
        command = click.option(f"--{option}", metavar="URL", help=f"The broker of {title}'s queues.")(command)
    return command


@queues.command()
@_brokers
@click.option("--queue", "names", metavar="NAME", multiple=True, help="A queue to read; may be given several times.")
@click.option("--once", is_flag=True, help="Print the queues as they are now, and end.")
def watch(names: tuple[str, ...], once: bool, **brokers: str | None) -> None:
    """Report depth and age of queues, and record the jobs of dead workers, from a small process of its own.

    \b
    otel-kit queues watch --rq redis://localhost:6379/0 --queue default --queue mail --once
    otel-kit queues watch --celery redis://localhost:6379/0 --queue celery

    Workers report their own queues. This is for those times when none of them runs, or for a broker whose workers are not
    instrumented. With --once it exits with 1 when a queue cannot be read.
    """
    sources = _sources({name: url for name, url in brokers.items() if url}, names)
    if once:
        raise SystemExit(_print(sources))
    otel_kit.configure(os.environ.get("OTEL_SERVICE_NAME") or "otel-kit-queues", instrument=False)
    for url, source in sources:
        single = redis_url(url)
        watch_queue(source, RedisLease(own_client(single)) if single is not None else None)
    keep(leases_for(next((url for url, _source in sources if redis_url(url) is not None), None)))
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: ended.set())
    for url, source in sources:
        click.echo(f"watching {source.name} of {without_credentials(url)}")
    ended.wait()
    otel_kit.shutdown()


def _sources(brokers: dict[str, str], names: Sequence[str]) -> list[tuple[str, QueueSource]]:
    if not brokers:
        options = ", ".join(f"--{name}" for name in FRAMEWORKS)
        raise click.UsageError(
            f"no broker is given; expected one of {options} with its URL: --rq redis://localhost:6379/0"
        )
    if not names:
        raise click.UsageError("no queue is given; expected --queue NAME, once for each: --queue default")
    found: list[tuple[str, QueueSource]] = []
    for framework, url in brokers.items():
        if "://" not in url:
            raise click.BadParameter(
                f"{url!r} is no URL; expected one like redis://localhost:6379/0", param_hint=f"--{framework}"
            )
        try:
            module = importlib.import_module(f"otel_kit.integrations.{framework}.queues")
            found += [(url, source) for source in module.from_url(url, names)]
        except ModuleNotFoundError as missing:
            raise click.ClickException(
                f"--{framework} needs the package {missing.name!r}: pip install 'otel-kit[{framework}]'"
            ) from missing
        except Exception as error:  # a URL that this framework's client does not take
            shown = without_credentials(url)
            raise click.BadParameter(
                f"{shown!r} is not accepted: {cause(error)}", param_hint=f"--{framework}"
            ) from error
    return found


def _print(sources: Sequence[tuple[str, QueueSource]]) -> int:
    table = Table("queue", "broker", box=None)
    for column in ("ready", "scheduled", "reserved", "dead", "oldest ready"):
        table.add_column(column, justify="right")
    failed = []
    for url, source in sources:
        try:
            state = source.read()
        except Exception as error:  # noqa: BLE001 - whatever the broker's client raises
            failed.append(f"{source.name}: {without_credentials(url)} cannot be read: {cause(error)}")
            continue
        table.add_row(shown(source.name), source.system, *_cells(state))
    if table.row_count:
        Console().print(table)
    for line in failed:
        click.echo(line, err=True)
    return 1 if failed else 0


def _cells(state: QueueState) -> list[str]:
    oldest = "" if state.oldest_ready_at is None else ago(time.time() - state.oldest_ready_at)
    return [*map(str, (state.ready, state.scheduled, state.reserved, state.dead)), oldest]
