"""`otel-kit jobs`: which jobs run, which were lost with their workers, and how the lost ones are run again."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
from opentelemetry._logs import SeverityNumber
from rich.console import Console
from rich.table import Table

import otel_kit
from otel_kit import catalogue
from otel_kit.cli import recovery
from otel_kit.cli.lines import ago, cause, shown
from otel_kit.integrations.redis_leases import Lost, RedisLeases, State
from otel_kit.jobs.lease_store import Lease
from otel_kit.jobs.leases import lease_settings
from otel_kit.jobs.recorder import get_recorder
from otel_kit.settings import without_credentials

_redis = click.option(
    "--redis",
    "server",
    metavar="URL",
    help="The Redis with the workers' leases: their broker's, or what OTEL_KIT_LEASES names.",
)
_FIRST = ("job", "id", "attempt", "queue")


@click.group()
def jobs() -> None:
    """Which jobs run now, which were lost with their workers, and running those again."""


@contextmanager
def _leases(server: str | None) -> Iterator[RedisLeases]:
    server = server or lease_settings().url
    if server is None:
        raise click.UsageError(
            "it is not known where the leases are; expected --redis URL, or OTEL_KIT_LEASES=redis://...: "
            "--redis redis://localhost:6379/0"
        )
    try:
        store = RedisLeases(server, override=False)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--redis") from error
    try:
        yield store
    except click.ClickException:
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "redis":
            raise
        raise click.ClickException(f"--redis {without_credentials(server)} does not answer: {cause(error)}") from error
    finally:
        store.close()


@jobs.command()
@_redis
def running(server: str | None) -> None:
    """The jobs that run now, oldest first, and whether their processes still say so."""
    with _leases(server) as store:
        found = sorted(store.running(), key=lambda each: each.lease.started_at)
    table = Table(*_FIRST, "runs for", "limit", "lease", "where", box=None)
    for each in found:
        job, age = each.lease.job, time.time() - each.lease.started_at
        limit = "" if job.max_runtime is None else ago(job.max_runtime)
        over = job.max_runtime is not None and age > job.max_runtime
        lease = "alive" if each.remaining > 0 else f"[red]dead for {ago(-each.remaining)}[/]"
        table.add_row(
            *_cells(each.lease), f"[red]{ago(age)}[/]" if over else ago(age), limit, lease, shown(each.lease.where)
        )
    _show(table, "no job runs that has been running for a moment and whose worker keeps leases here")


@jobs.command()
@_redis
def lost(server: str | None) -> None:
    """The jobs that were lost with their workers in the last two days, latest first."""
    with _leases(server) as store:
        found, dead = store.lost(), [each for each in store.running() if each.remaining <= 0]
    table = Table(*_FIRST, "ran for", "lost", "state", "where", box=None)
    for each in found:
        ran = ago(each.at - each.lease.started_at)
        table.add_row(*_cells(each.lease), ran, f"{ago(each.age)} ago", each.state.value, shown(each.lease.where))
    _show(table, "no job was lost")
    _mention(len(dead))


@jobs.command()
@_redis
@click.option(
    "--broker", metavar="URL", help="The framework's own broker, where that is not the Redis with the leases."
)
@click.option("--apply", is_flag=True, help="Do it. Without it only what would be done is shown.")
@click.option(
    "--again",
    is_flag=True,
    help="Also what failed the last time (requeueing): somebody has looked that it was not sent.",
)
@click.option(
    "--sure", is_flag=True, help="Somebody has looked: of these runs no process is left, an RQ work horse neither."
)
@click.option("--job", "name", metavar="NAME", help="Only jobs of this name.")
@click.option("--id", "job_id", metavar="ID", help="Only the job with this id.")
@click.option(
    "--dead-for", default=60.0, show_default=True, metavar="SECONDS", help="Only what was declared lost so long ago.",
    type=click.FloatRange(min=0),
)  # fmt: skip
def recover(
    server: str | None,
    broker: str | None,
    apply: bool,
    again: bool,
    sure: bool,
    name: str | None,
    job_id: str | None,
    dead_for: float,
) -> None:
    """Run lost jobs again: those that are marked as recoverable, and whose lease is dead.

    Shows what would be done; --apply does it. Whether a job still lives is asked once more at the moment of acting. Exits with
    1 when one could not be run again.
    """
    with _leases(server) as store:
        wanted = [
            each
            for each in store.lost()
            if each.lease.job.name == (name or each.lease.job.name)
            and each.lease.job.id == (job_id or each.lease.job.id)
        ]
        dead = sum(each.remaining <= 0 for each in store.running())
        url = broker or server or lease_settings().url or ""
        if apply:
            otel_kit.configure(os.environ.get("OTEL_SERVICE_NAME") or "otel-kit-jobs", instrument=False)
        table, failed, acted = Table(*_FIRST, "lost", "recovery", box=None), 0, 0
        for each in wanted:
            verdict, right = _decide(store, each, url, dead_for, apply=apply, again=again, sure=sure)
            failed += not right
            acted += right and verdict.startswith(("would", "done"))
            table.add_row(*_cells(each.lease), f"{ago(each.age)} ago", verdict)
    _show(table, "no job was lost" if name is None and job_id is None else "no such job was lost")
    _mention(dead)
    if acted and not apply:
        click.echo("Nothing was done: --apply does it.")
    if apply and not otel_kit.shutdown():
        click.echo("The record of this (audit, count) did not reach the collector yet.", err=True)
    if failed:
        raise SystemExit(1)


def _decide(
    store: RedisLeases, found: Lost, broker: str, dead_for: float, *, apply: bool, again: bool, sure: bool
) -> tuple[str, bool]:
    """What was done, or would be, and whether that is as it should be."""
    lease = found.lease
    if found.state is not State.LOST and not (again and found.state is State.REQUEUEING):
        return {State.CLAIMED: "not yet: its loss is being recorded"}.get(found.state, found.state.value), True
    why_not = recovery.refusal(lease)
    if why_not:
        return f"no: {shown(why_not)}", True
    if found.age < dead_for:
        return f"not yet: --dead-for {dead_for:g} s", True
    if not apply:
        return f"would run it again ({lease.framework})", True
    # From here on nobody else takes it in hand, and its own process has not come back.
    refused = store.begin_recovery(lease, again=again)
    if refused:
        return f"no: {refused}", True
    try:
        done = recovery.run_again(lease, broker, sure=sure)
    except recovery.RefusedError as error:
        store.end_recovery(lease, done=False)
        return f"no: {shown(str(error))}", True
    except Exception as error:  # noqa: BLE001 - the framework's own, or the broker's client's
        # It may have been sent: whoever looks has to decide, and it stays marked until then.
        return f"[red]failed[/]: {shown(cause(error))}; look into the queue before you do it --again", False
    store.end_recovery(lease, done=True)
    _record(lease, done)
    return f"done: {shown(done)}", True


def _record(lease: Lease, done: str) -> None:
    job, actor = lease.job, _actor()
    otel_kit.audit(
        "job.recovered", actor=actor, what=done, framework=lease.framework, lost_with=lease.where,
        **{catalogue.JOB_NAME: job.name, catalogue.JOB_ID: job.id, catalogue.JOB_ATTEMPT: job.attempt},
    )  # fmt: skip
    recorder = get_recorder()
    recorder.tally.recovered(job, "requeued")
    recorder.emit(
        catalogue.JOB_RECOVERED,
        f"Job {job.name} was lost with {lease.where} and is run again by {actor}: {done}",
        job,
        {catalogue.JOB_RECOVERY: "requeued"},
        severity=SeverityNumber.WARN,
    )


def _actor() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user id, as in many a container
        return f"user {os.getuid()}"


def _cells(lease: Lease) -> Sequence[str]:
    # Names come from outside: what looks like markup is none.
    return shown(lease.job.name), shown(lease.job.id), str(lease.job.attempt), shown(lease.job.queue)


def _show(table: Table, otherwise: str) -> None:
    if table.row_count:
        console = Console()
        # A pipe is no terminal of 80 columns: nothing is cut there.
        Console(width=None if console.is_terminal else 400, highlight=False).print(table)
    else:
        click.echo(otherwise)


def _mention(dead: int) -> None:
    if dead:
        click.echo(
            f"{dead} more with a dead lease that nobody has recorded yet: any live worker does that within a minute, and so "
            "does `otel-kit queues watch`."
        )
