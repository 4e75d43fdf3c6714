"""`otel-kit`: the entry point. Commands are imported when they are asked for, so that `--help` is quick."""

from __future__ import annotations

import importlib
import sys
from typing import Final

try:
    import click
except ImportError:  # the runtime package does without the command line's libraries
    sys.exit("otel-kit's command line needs an extra: pip install 'otel-kit[cli]'")

from otel_kit._version import __version__

#: Command name -> where it lives.
_COMMANDS: Final = {
    "demo": ("otel_kit.cli.demo", "demo"),
    "doctor": ("otel_kit.cli.doctor", "doctor"),
    "jobs": ("otel_kit.cli.jobs", "jobs"),
    "queues": ("otel_kit.cli.queues", "queues"),
    "run": ("otel_kit.cli.run", "run"),
    "stack": ("otel_kit.cli.stack", "stack"),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        try:
            command: click.Command = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as missing:
            if (missing.name or "").startswith("otel_kit"):
                raise
            extra = "demo" if cmd_name == "demo" else "cli"
            raise click.ClickException(
                f"`otel-kit {cmd_name}` needs {missing.name!r}: pip install 'otel-kit[{extra}]'"
            ) from missing
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="otel-kit")
def main() -> None:
    """Traces, metrics and logs for APIs and background jobs: see them, ship them, check them."""


if __name__ == "__main__":
    main()
