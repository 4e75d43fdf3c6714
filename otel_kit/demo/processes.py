"""Programs that belong together: started with a log file each, watched, and all stopped again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from otel_kit.telemetry.redaction import REDACTED

_TAIL_LINES: Final = 15
_POLL: Final = 0.05


class PartFailedError(Exception):
    """A part of the demo could not start or did not do its work.

    Attributes:
        part: Which one, as it is called in the output.
        reason: What went wrong, one sentence.
        log: The last lines that the part wrote.
    """

    def __init__(self, part: str, reason: str, log: Sequence[str] = ()) -> None:
        super().__init__(f"{part}: {reason}")
        self.part = part
        self.reason = reason
        self.log = tuple(log)


@dataclass(frozen=True)
class Program:
    """A program that was started: its name, process and log file, and whether ending well is what it should do."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    may_end: bool = False

    def status(self) -> int | None:
        """Its exit code, minus the signal that killed it, or ``None`` while it runs.

        Where the system allows (macOS: since Python 3.13), it is not reaped: its id stays ours until its group is gone.
        """
        if self.process.returncode is None and hasattr(os, "waitid"):
            end = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is None:
                return None
            return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        return self.process.poll()

    def has_ended(self) -> bool:
        """Whether it is over."""
        return self.status() is not None


class Processes:
    """Starts programs and, on leaving the context, stops every one of them with everything that they have started.

    Args:
        directory: Where the log files go.
        secrets: Texts that are never shown, not even in the tail of a log.
        grace: Seconds that the programs get to end by themselves, together, before they are killed.
    """

    def __init__(self, directory: Path, *, secrets: Sequence[str] = (), grace: float = 10.0) -> None:
        self._directory = directory
        self._secrets = tuple(secrets)
        self._grace = grace
        self._programs: list[Program] = []

    @property
    def ids(self) -> list[int]:
        """The process ids of what was started, in that order."""
        return [program.process.pid for program in self._programs]

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        may_end: bool = False,
    ) -> Program:
        """Start a program in a session of its own, so that Ctrl-C reaches us and not it.

        Args:
            stdout: Where its output goes; the log file when left out. Errors always go to the log file.
            may_end: It is not a fault when it ends with exit code 0.

        Raises:
            PartFailedError: There is no such program, or it may not be run.
        """
        path = self._directory / f"{name}.log"
        with path.open("wb") as log:
            try:
                process = subprocess.Popen(  # noqa: S603 - our own commands
                    command,
                    stdin=stdin,
                    stdout=log if stdout is None else stdout,
                    stderr=log,
                    env=dict(environment),
                    cwd=folder,
                    start_new_session=True,
                )
            except OSError as error:
                raise PartFailedError(name, f"cannot run {command[0]}: {error.strerror}") from None
        program = Program(name, process, path, may_end)
        self._programs.append(program)
        return program

    def wait_until(self, program: Program, ready: Callable[[], bool], *, what: str, timeout: float) -> None:
        """Poll until a program is ready.

        Args:
            what: What is waited for, to complete the sentence "did not ...".
            timeout: Seconds.

        Raises:
            PartFailedError: The program, or any other, ended meanwhile; or time is up.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise PartFailedError(program.name, f"did not {what} within {timeout:g} s", self.tail(program))
            time.sleep(_POLL)

    def check(self) -> None:
        """Raise `PartFailedError` for the first program that is over although it should still run."""
        for program in self._programs:
            status = program.status()
            if status is not None and not (program.may_end and status == 0):
                how = f"signal {-status}" if status < 0 else f"exit code {status}"
                raise PartFailedError(program.name, f"ended by itself with {how}", self.tail(program))

    def tail(self, program: Program, lines: int = _TAIL_LINES) -> list[str]:
        """The last lines of a program's log, without secrets."""
        text = program.log.read_text(errors="replace")
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text.rstrip().splitlines()[-lines:]

    def tails(self, lines: int = 5) -> dict[str, list[str]]:
        """The last lines of every program's log."""
        return {program.name: self.tail(program, lines) for program in self._programs}

    def stop(self) -> None:
        """End everything: ask, wait for `grace` seconds, then kill whole process groups. Ctrl-C waits meanwhile."""
        with _signals_ignored():
            # The first one started is what the others stand on (the broker): it goes last.
            first, others = self._programs[:1], self._programs[1:]
            deadline = time.monotonic() + self._grace
            for group in (others, first):
                for program in group:
                    if program.process.stdin is not None:
                        with contextlib.suppress(OSError):
                            program.process.stdin.close()
                    if not program.has_ended():
                        program.process.terminate()
                while time.monotonic() < deadline and not all(program.has_ended() for program in group):
                    time.sleep(_POLL)
                for program in group:
                    # Until it is waited for, the leader's id names this group and no other.
                    if program.process.returncode is None:
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(program.process.pid, signal.SIGKILL)
                        program.process.wait()
            self._programs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_unwind() -> Iterator[None]:
    """Make SIGTERM and SIGHUP leave by the same way as Ctrl-C: through every ``finally``, with status 128 + signal.

    One that was ignored when we started stays so: nohup means it.
    """

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
