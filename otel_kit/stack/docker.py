"""The stack in containers: docker-compose.yml through the `docker` command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from otel_kit.stack.assets import Assets
from otel_kit.stack.endpoints import Endpoints, State
from otel_kit.stack.errors import StackError
from otel_kit.stack.secrets import compose_environment, grafana_password_file
from otel_kit.stack.settings import PREFIX, Ports, StackSettings

PROJECT = "otel-kit"
# What docker says when a registry cannot be reached, refuses, or does not have the tag.
_NO_IMAGE = re.compile(
    r"pull access denied|manifest unknown|failed to resolve reference|failed to pull|no such host|error pulling image"
    r"|i/o timeout|TLS handshake timeout|connection refused|toomanyrequests|denied: requested access|failed to do request"
    r"|network is unreachable|server misbehaving",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answers and has Compose: ``command`` is the path of `docker`."""

    command: str
    version: str


def find_engine(env: Mapping[str, str] | None = None, timeout: float = 5.0) -> Engine | str:
    """Return the engine, or in words why there is none that can be used (asked for at most ``timeout`` seconds each)."""
    command = shutil.which("docker", path=None if env is None else env.get("PATH", ""))
    if command is None:
        return "there is no `docker` on PATH"
    version = _ask([command, "info", "--format", "{{.ServerVersion}}"], env, timeout)
    if version is None:
        return "no Docker engine answers `docker info`"
    if _ask([command, "compose", "version"], env, timeout) is None:
        return "Docker has no Compose plugin (`docker compose version` fails)"
    return Engine(command, version)


def _ask(command: list[str], env: Mapping[str, str] | None, timeout: float) -> str | None:
    try:
        answer = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=timeout, env=None if env is None else dict(env)
        )
    except (subprocess.TimeoutExpired, OSError):
        return None
    text = answer.stdout.strip()
    return text if answer.returncode == 0 and text else None


class DockerStack:
    """`docker compose` on our file, always under the same project name, so that every command finds it again."""

    def __init__(
        self, engine: Engine, assets: Assets, settings: StackSettings, compose_file: Path | None = None
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._file = compose_file or assets.compose_file

    @property
    def endpoints(self) -> Endpoints:
        """Where the containers answer on this machine."""
        return Endpoints.docker(self._settings.ports)

    @property
    def password_file(self) -> Path:
        """The file with the password of Grafana's user admin; made when it is first asked for."""
        return grafana_password_file(self._secrets)

    @property
    def _secrets(self) -> Path:
        return self._settings.data_dir / "secrets"

    def up(self) -> None:
        """Start all services and wait until they are healthy.

        Raises:
            StackError: images cannot be pulled, a service does not get healthy, or Compose fails otherwise.
        """
        limit = max(1, int(self._settings.start_timeout))
        answer = self._compose(["up", "--detach", "--wait", "--wait-timeout", str(limit)])
        if answer.returncode != 0:
            raise StackError(self._explain(answer.stderr))
        self._wait_for_collector(limit)
        State("docker", self.endpoints).save(self._settings)

    def down(self, delete_data: bool = False) -> None:
        """Stop and remove the containers; with ``delete_data`` also the volumes."""
        # With every profile: services of the demo would hold the network.
        answer = self._compose(["--profile", "*", "down", *(["--volumes"] if delete_data else [])])
        if answer.returncode != 0:
            raise StackError(f"`docker compose down` failed:\n{_tail(answer.stderr)}")
        State.clear(self._settings)

    def ps(self) -> str:
        """What `docker compose ps` prints."""
        answer = self._compose(["ps", "--all"])
        if answer.returncode != 0:
            raise StackError(f"`docker compose ps` failed:\n{_tail(answer.stderr)}")
        return answer.stdout

    def logs(self, services: list[str], lines: int) -> str:
        """The last ``lines`` log lines of each service (of all, when none is named)."""
        answer = self._compose(["logs", "--no-color", "--tail", str(lines), *services])
        if answer.returncode != 0:
            raise StackError(f"`docker compose logs` failed:\n{_tail(answer.stderr)}")
        return answer.stdout

    def _wait_for_collector(self, timeout: float) -> None:
        """Its image has nothing that could ask it from inside, so Compose knows only that it was started."""
        deadline = time.monotonic() + timeout
        with httpx.Client(timeout=2, trust_env=False) as client:
            while True:
                try:
                    if client.get(self.endpoints.collector_health).status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass
                if time.monotonic() > deadline:
                    raise StackError(
                        f"The collector does not answer at {self.endpoints.collector_health}: "
                        "`otel-kit stack logs otelcol` shows what it says."
                    )
                time.sleep(0.2)

    def _environment(self) -> dict[str, str]:
        """What docker-compose.yml reads: our settings, on top of what the user has set."""
        ports = {Ports.variable(name): str(port) for name, port in asdict(self._settings.ports).items()}
        days = {
            f"{PREFIX}{name.upper()}": str(getattr(self._settings, name))
            for name in ("traces_days", "logs_days", "audit_days")
        }
        return {**os.environ, **ports, **days, **compose_environment(self._secrets)}

    def _compose(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        command = [self._engine.command, "compose", "--project-name", PROJECT, "--file", str(self._file), *arguments]
        # Pulling the images may take long on a slow line; without any bound a dead registry would hang us for good.
        try:
            return subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, timeout=1800, env=self._environment()
            )
        except subprocess.TimeoutExpired as error:
            raise StackError(f"`{' '.join(command)}` did not end within 30 minutes") from error

    def _explain(self, stderr: str) -> str:
        if _NO_IMAGE.search(stderr):
            return (
                "The engine cannot pull the images (no network, no access to the registry, or a limit):\n"
                f"{_tail(stderr)}\n"
                "Without images: `otel-kit stack up --native` builds the same collector and backends with Go."
            )
        return f"`docker compose up` failed:\n{_tail(stderr)}\n`otel-kit stack logs` shows what the services say."


def _tail(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-15:])
