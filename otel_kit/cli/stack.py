"""`otel-kit stack`: build, start, look at and stop the backends."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Iterator

import click
from rich.console import Console
from rich.table import Table

from otel_kit.stack import assets, build, docker
from otel_kit.stack.endpoints import Endpoints, State
from otel_kit.stack.errors import StackError
from otel_kit.stack.native import NativeStack
from otel_kit.stack.pins import PARTS, SERVERS
from otel_kit.stack.progress import BuildProgress, LineProgress, LiveProgress
from otel_kit.stack.settings import StackSettings

_console = Console()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except StackError as error:
        raise click.ClickException(str(error)) from error


@contextlib.contextmanager
def _progress() -> Iterator[BuildProgress]:
    if sys.stderr.isatty():
        with LiveProgress(Console(stderr=True)) as live:
            yield live
    else:
        yield LineProgress()


def _native(settings: StackSettings) -> NativeStack:
    """The native stack, without building anything: enough to look at it and to stop it."""
    found = assets.find()
    binaries = {part.name: build.binary(part, found, settings.cache_dir) for part in SERVERS}
    return NativeStack(found, settings, binaries)


def _docker(settings: StackSettings) -> docker.DockerStack:
    engine = docker.find_engine()
    if isinstance(engine, str):
        raise StackError(f"The stack runs in Docker, and {engine}.")
    return docker.DockerStack(engine, assets.find(), settings)


@click.group()
def stack() -> None:
    """The collector, Tempo, Prometheus, Loki and Alertmanager (with Docker: Grafana) on this machine."""


@stack.command("build")
@click.argument("parts", nargs=-1)
def build_command(parts: tuple[str, ...]) -> None:
    """Build the native stack with Go, or only the named PARTS; tools such as promtool are built when named."""
    by_name = {part.name: part for part in PARTS}
    if unknown := [name for name in parts if name not in by_name]:
        raise click.UsageError(f"unknown part {unknown[0]!r}: expected one of {', '.join(by_name)}")
    with _errors():
        settings = StackSettings.from_env()
        wanted = [by_name[name] for name in parts] or list(SERVERS)
        with _progress() as progress:
            binaries = build.ensure(wanted, assets.find(), settings.cache_dir, progress)
    for path in binaries.values():
        click.echo(path)


@stack.command()
@click.option("--native", is_flag=True, help="Without containers, even where an engine answers.")
def up(native: bool) -> None:
    """Start the stack and wait until it is ready: in Docker where an engine answers, else as native builds."""
    with _errors():
        settings = StackSettings.from_env()
        state = State.load(settings)
        if state is not None and state.engine == "docker" and native:
            raise StackError("The stack is running in Docker: stop it first with `otel-kit stack down`.")
        engine = "asked for --native" if native or (state and state.engine == "native") else docker.find_engine()
        if isinstance(engine, docker.Engine):
            click.echo(f"Docker {engine.version}: starting the containers (the first time their images are pulled)")
            containers = docker.DockerStack(engine, assets.find(), settings)
            containers.up()
            _show(containers.endpoints)
            click.echo(f"Grafana's user is admin, its password is in {containers.password_file}")
            return
        if not native:
            click.echo(f"Native stack, because {engine}.")
        found = assets.find()
        with _progress() as progress:
            binaries = build.ensure(SERVERS, found, settings.cache_dir, progress)
        processes = NativeStack(found, settings, binaries)
        processes.up(tell=click.echo)
    _show(processes.endpoints)


@stack.command()
@click.option("--delete-data", is_flag=True, help="Also delete everything that was stored.")
def down(delete_data: bool) -> None:
    """Stop the stack. Data are kept unless --delete-data is given."""
    with _errors():
        settings = StackSettings.from_env()
        state = State.load(settings)
        if state is not None and state.engine == "docker":
            _docker(settings).down(delete_data)
        else:
            # Also without a state: parts may be left from a start that was interrupted.
            for name in _native(settings).down(delete_data):
                click.echo(f"{name} did not stop within {settings.stop_timeout:g} s and was killed", err=True)
    click.echo("The stack is stopped" + (", and its data are deleted." if delete_data else "; its data are kept."))


@stack.command()
def status() -> None:
    """Show what runs and where it answers; exits with 1 unless all of it is ready."""
    with _errors():
        settings = StackSettings.from_env()
        state = State.load(settings)
        if state is not None and state.engine == "docker":
            click.echo(_docker(settings).ps())
            _show(state.endpoints)
            return
        parts = _native(settings).status()
    table = Table("part", "state", "process", box=None)
    for part in parts:
        word = "ready" if part.ready else "not ready" if part.pid else "stopped"
        table.add_row(part.name, word, str(part.pid or ""))
    _console.print(table)
    if state is not None:
        _show(state.endpoints)
    if not all(part.ready for part in parts):
        sys.exit(1)


@stack.command()
@click.argument("parts", nargs=-1)
@click.option("--lines", default=50, show_default=True, help="How many of the last lines of each.")
def logs(parts: tuple[str, ...], lines: int) -> None:
    """Print the end of the logs of all parts, or of the named PARTS."""
    with _errors():
        settings = StackSettings.from_env()
        state = State.load(settings)
        if state is not None and state.engine == "docker":
            click.echo(_docker(settings).logs(list(parts), lines))
            return
        native = _native(settings)
        if unknown := [name for name in parts if name not in native.parts]:
            raise StackError(f"unknown part {unknown[0]!r}: expected one of {', '.join(native.parts)}")
        for name in parts or native.parts:
            log = native.log(name)
            click.secho(f"==> {log}", bold=True)
            if log.exists():
                with log.open(errors="replace") as file:
                    click.echo("".join(deque(file, maxlen=lines)), nl=False)


def _show(endpoints: Endpoints) -> None:
    table = Table("", "", show_header=False, box=None)
    rows = {
        "send OTLP to": f"{endpoints.otlp_http} (HTTP), {endpoints.otlp_grpc} (gRPC)",
        "Grafana": endpoints.grafana,
        "Prometheus": endpoints.prometheus,
        "Tempo": endpoints.tempo,
        "Loki": endpoints.loki,
        "Alertmanager": endpoints.alertmanager,
    }
    for name, url in rows.items():
        if url is not None:
            table.add_row(name, url)
    _console.print(table)
