"""A container engine for the tests: a dockerd of our own, with its own data, and Docker Compose as its plugin.

Needs root, because dockerd does. What is missing is installed from the distribution's packages; Compose is built once
from its Go module, into the same cache as the native stack.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from otel_kit.stack.assets import Assets
from otel_kit.stack.build import ensure
from otel_kit.stack.pins import Part

#: Program -> the Debian package that brings it.
PROGRAMS = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "runc": "runc",
    "containerd": "containerd",
    "iptables": "iptables",
}

COMPOSE = Part("docker-compose", "tests/stack/compose", "github.com/docker/compose/v2/cmd", expected_seconds=150)

# Installed by packages, but not always on the PATH of whoever runs the tests.
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class EngineError(Exception):
    """There can be no container engine here; the message says what to do about it."""


def require_programs() -> None:
    """Install what dockerd needs, where that is possible.

    Raises:
        EngineError: not root, or the packages could not be installed.
    """
    if os.geteuid() != 0:
        raise EngineError(
            "dockerd needs root: run these tests as root (`sudo make test`), or in a virtual machine of their own. "
            f"They use Debian's packages {', '.join(sorted(set(PROGRAMS.values())))}."
        )
    packages = sorted({package for program, package in PROGRAMS.items() if shutil.which(program, path=_PATH) is None})
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise EngineError(f"There is no apt-get to install {' '.join(packages)} with: install what provides them.")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            raise EngineError(f"`{' '.join(command)}` failed; install the packages by hand:\n{done.stderr[-2000:]}")


class Engine:
    """A running dockerd. Use as a context manager: it takes its containers, images and volumes with it.

    What stays is what every Docker leaves: empty chains in iptables, and forwarding of packets switched on.
    """

    def __init__(self, assets: Assets, cache_dir: Path) -> None:
        require_programs()
        self._compose = ensure([COMPOSE], assets, cache_dir)[COMPOSE.name]
        self._home = Path(tempfile.mkdtemp(prefix="otel-kit-engine-"))
        self._log = self._home / "dockerd.log"
        self._process: subprocess.Popen[bytes] | None = None
        # All dockerds of a machine write to the same chains of iptables, and each clears them when it starts.
        self._lock = (cache_dir / "engine.lock").open("w")

    @property
    def host(self) -> str:
        """The value of DOCKER_HOST that leads here."""
        return f"unix://{self._home / 'docker.sock'}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which ``docker`` and ``docker compose`` talk to this engine."""
        own = {"DOCKER_HOST": self.host, "DOCKER_CONFIG": str(self._home / "config"), "PATH": _PATH}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "COMPOSE_"))}
        return {**kept, **own}

    def __enter__(self) -> Engine:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        plugins = self._home / "config" / "cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-compose").symlink_to(self._compose)
        command = [
            "dockerd",
            f"--host={self.host}",
            f"--data-root={self._home / 'data'}",
            f"--exec-root={self._home / 'exec'}",
            f"--pidfile={self._home / 'dockerd.pid'}",
            # Projects have networks of their own; the default bridge would touch the machine's for nothing.
            "--bridge=none",
        ]
        dockerd = shutil.which(command[0], path=_PATH) or command[0]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [dockerd, *command[1:]],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(timeout=60)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()

    def docker(
        self,
        *arguments: str,
        stdin: IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> str:
        """Run ``docker`` and return what it printed.

        Raises:
            EngineError: it failed; the message carries its last words.
        """
        done = subprocess.run(
            ["docker", *arguments],
            env={**self.environment, **(env or {})},
            cwd=cwd,
            stdin=stdin or subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise EngineError(
                f"`docker {' '.join(arguments)}` ended with {done.returncode}:\n{done.stderr.decode()[-4000:]}"
            )
        return done.stdout.decode()

    def load(self, archive: Path, tag: str, changes: Sequence[str]) -> None:
        """Make an image of one layer out of a tar file. ``changes`` are lines of a Dockerfile: USER, ENTRYPOINT, ..."""
        options = [option for change in changes for option in ("--change", change)]
        with archive.open("rb") as stream:
            self.docker("import", *options, "-", tag, stdin=stream)

    def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EngineError(f"dockerd does not come up:\n{self._log.read_text()[-4000:]}")
            try:
                self.docker("version", "--format", "{{.Server.Version}}", timeout=10)
            except (EngineError, subprocess.TimeoutExpired):
                time.sleep(0.2)
            else:
                return

    def _stop(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            # On SIGTERM dockerd stops its containers and unmounts what it has mounted.
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=10)
        # dockerd leaves the mount of its network namespace, and a killed one more than that.
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(f"{self._home}/")]):
            subprocess.run(["umount", "--lazy", mount], check=False, timeout=30)
        shutil.rmtree(self._home)
        self._lock.close()
