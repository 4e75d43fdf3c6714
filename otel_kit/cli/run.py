"""`otel-kit run -- COMMAND`: any Python program, instrumented without a change to it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import opentelemetry.instrumentation.auto_instrumentation as auto


def environment(environ: Mapping[str, str], service_name: str | None = None) -> dict[str, str]:
    """The environment in which every Python interpreter that starts wires itself.

    Upstream's loader is a ``sitecustomize`` module found first on PYTHONPATH; the names pick ours where another distribution
    is installed too.

    Args:
        environ: The environment to start from.
        service_name: Becomes OTEL_SERVICE_NAME.
    """
    path = [str(Path(auto.__file__).parent), *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    changed = {
        **environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "OTEL_PYTHON_DISTRO": "otel_kit",
        "OTEL_PYTHON_CONFIGURATOR": "otel_kit",
    }
    if service_name:
        changed["OTEL_SERVICE_NAME"] = service_name
    return changed


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--service-name", metavar="NAME", help="The service's name (OTEL_SERVICE_NAME).")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(service_name: str | None, command: tuple[str, ...]) -> None:
    """Run COMMAND with traces, metrics and logs on, without a change to its code.

    \b
    otel-kit run -- uvicorn shop:app
    otel-kit run --service-name shop-worker -- celery -A shop worker
    """
    executable = shutil.which(command[0])
    if executable is None:
        raise click.ClickException(f"COMMAND={command[0]!r} is not found on PATH; give a program that is, or its path")
    sys.stdout.flush()
    os.execve(executable, [command[0], *command[1:]], environment(os.environ, service_name))  # noqa: S606
