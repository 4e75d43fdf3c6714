"""The native stack: our own builds as ordinary processes on 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import httpx

from otel_kit.stack.assets import Assets
from otel_kit.stack.endpoints import Endpoints, State
from otel_kit.stack.errors import StackError
from otel_kit.stack.parts import Launch, launches
from otel_kit.stack.processes import Process, spawn
from otel_kit.stack.settings import Ports, StackSettings

_LOG_LINES = 15


@dataclass(frozen=True)
class PartStatus:
    """One line of ``stack status``: ``pid`` is None when it does not run; ``ready`` is what its health URL says."""

    name: str
    pid: int | None
    ready: bool


class NativeStack:
    """Starts and stops the parts; which of them run is known from pid files, so any later command can go on."""

    def __init__(self, assets: Assets, settings: StackSettings, binaries: Mapping[str, Path]) -> None:
        """``binaries`` maps the name of every part to its built binary (:func:`otel_kit.stack.build.ensure`)."""
        self._settings = settings
        self._binaries = binaries
        self._launches = {launch.name: launch for launch in launches(assets, settings)}

    @property
    def endpoints(self) -> Endpoints:
        """Where the parts answer once they run."""
        return Endpoints.native(self._settings.ports)

    @property
    def parts(self) -> list[str]:
        """The names of all parts, in starting order."""
        return list(self._launches)

    def up(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Start what does not run yet and wait until all of it is ready.

        Raises:
            StackError: a port is taken, or a part did not get ready in time; what this call had started is stopped again.
        """
        todo = [launch for launch in self._launches.values() if self.process(launch.name) is None]
        check_ports(self._settings.ports, [port for launch in todo for port in launch.ports])
        try:
            for launch in todo:
                tell(f"starting {launch.name}")
                self._spawn(launch)
            self._wait_ready(list(self._launches.values()), tell)
        except BaseException:
            for launch in todo:
                self.stop(launch.name)
            raise
        State("native", self.endpoints).save(self._settings)

    def down(self, delete_data: bool = False) -> list[str]:
        """Stop every part, the collector first so that its queues are on disk; return those that had to be killed."""
        killed = [name for name in reversed(self._launches) if not self.stop(name)]
        State.clear(self._settings)
        if delete_data and self._settings.data_dir.exists():
            shutil.rmtree(self._settings.data_dir)
        return killed

    def start(self, name: str) -> None:
        """Start one part and wait until it is ready."""
        launch = self._launches[name]
        if self.process(name) is None:
            check_ports(self._settings.ports, list(launch.ports))
            self._spawn(launch)
        self._wait_ready([launch])

    def stop(self, name: str) -> bool:
        """Stop one part in order; returns False when it had to be killed."""
        process = self.process(name)
        graceful = process is None or process.stop(self._settings.stop_timeout)
        self._pid_file(name).unlink(missing_ok=True)
        return graceful

    def kill(self, name: str) -> None:
        """End one part by SIGKILL."""
        if (process := self.process(name)) is not None:
            process.kill()
        self._pid_file(name).unlink(missing_ok=True)

    def process(self, name: str) -> Process | None:
        """The part's running process, if any. A pid file whose process has ended, or was replaced, counts for nothing."""
        process = Process.load(self._pid_file(name))
        return process if process is not None and process.alive() else None

    def status(self) -> list[PartStatus]:
        """Every part, running or not."""
        found = [(launch, self.process(launch.name)) for launch in self._launches.values()]
        return [PartStatus(part.name, p.pid if p else None, p is not None and _answers(part)) for part, p in found]

    def log(self, name: str) -> Path:
        """The file that the part writes its log to."""
        return self._settings.data_dir / "log" / f"{name}.log"

    def _pid_file(self, name: str) -> Path:
        return self._settings.data_dir / "run" / f"{name}.pid"

    def _spawn(self, launch: Launch) -> None:
        command = [str(self._binaries[launch.name]), *launch.arguments]
        process = spawn(command, {**os.environ, **launch.env}, self.log(launch.name))
        process.save(self._pid_file(launch.name))

    def _wait_ready(self, waiting: list[Launch], tell: Callable[[str], None] = lambda _: None) -> None:
        deadline = time.monotonic() + self._settings.start_timeout
        while waiting:
            for launch in list(waiting):
                if _answers(launch):
                    waiting.remove(launch)
                    tell(f"{launch.name} is ready")
                elif self.process(launch.name) is None:
                    raise StackError(f"{launch.name} ended while it was starting.\n{self._last_lines(launch.name)}")
            if waiting and time.monotonic() > deadline:
                late = waiting[0]
                limit = f"OTEL_KIT_STACK_START_TIMEOUT={self._settings.start_timeout:g} seconds"
                raise StackError(
                    f"{late.name} was not ready within {limit} ({late.ready_url}).\n{self._last_lines(late.name)}"
                )
            time.sleep(0.1)

    def _last_lines(self, name: str) -> str:
        log = self.log(name)
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
        return "\n  ".join([f"The end of its log, {log}:", *(lines or ["(empty)"])])


def check_ports(ports: Ports, names: list[str]) -> None:
    """Raise StackError when one of the named ports is taken, naming the setting that moves it."""
    for entry in fields(Ports):
        if entry.name not in names:
            continue
        port: int = getattr(ports, entry.name)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As the servers themselves do: a port in TIME_WAIT is free, one that is listened on is not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise StackError(
                    f"Port {port} on 127.0.0.1 is taken ({error.strerror}). Stop what listens there, "
                    f"or set {Ports.variable(entry.name)} to a free port."
                ) from error


def _answers(launch: Launch) -> bool:
    try:
        return httpx.get(launch.ready_url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
