"""Processes that outlive the command that started them: start, recognise, stop.

A process id alone says little, for ids are reused. So a process is remembered by its id, the boot and the moment it
started, and one that differs in any of these is never signalled.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, told apart from any later one with the same id by ``started``."""

    pid: int
    started: str

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        # Reap it when it is our child; one that the init process inherited is reaped there.
        with contextlib.suppress(ChildProcessError, OSError):
            os.waitpid(self.pid, os.WNOHANG)
        return start_of(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Send ``number`` to this process, if it is still the same one."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, timeout: float) -> bool:
        """Ask it to end and kill it after ``timeout`` seconds. Returns whether it ended by itself."""
        self.signal(signal.SIGTERM)
        if self._gone_within(timeout):
            return True
        self.signal(signal.SIGKILL)
        self._gone_within(10.0)
        return False

    def kill(self) -> None:
        """End it at once, without a chance to save anything, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self._gone_within(10.0)

    def _gone_within(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def save(self, path: Path) -> None:
        """Write the pid file at ``path``, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(path)

    @staticmethod
    def load(path: Path) -> Process | None:
        """Read the pid file at ``path``; None when there is none or it is no pid file."""
        try:
            fields = json.loads(path.read_text())
            return Process(int(fields["pid"]), str(fields["started"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def spawn(command: Sequence[str], env: Mapping[str, str], log: Path) -> Process:
    """Start ``command`` in a session of its own, output appended to ``log``, so that it outlives this one."""
    log.parent.mkdir(parents=True, exist_ok=True)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        command[0],
        list(command),
        dict(env),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    return Process(pid, start_of(pid) or "ended at once")


def start_of(pid: int) -> str | None:
    """When the process with this id started, as an opaque text; None when there is none, or only its zombie."""
    if platform.system() != "Linux":
        return _start_by_ps(pid)
    try:
        # The name, in parentheses, may hold anything; the numbers follow its last one: field 3 is the state, 20 the
        # number of threads, 22 the start in clock ticks since boot (proc(5)).
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # The main thread is a zombie first; the process holds its ports until its other threads are gone too.
    ended = numbers[0] in "ZX" and int(numbers[17]) <= 1
    return None if ended else f"{boot}/{numbers[19]}"


def _start_by_ps(pid: int) -> str | None:
    command = ["/bin/ps", "-o", "state=,lstart=", "-p", str(pid)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=10)  # noqa: S603
    state, _, started = answer.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()
