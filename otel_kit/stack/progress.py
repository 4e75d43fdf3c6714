"""What is being built and how far it is: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from otel_kit.stack.pins import Part


class BuildProgress(Protocol):
    """Hears about the builds; called from several threads."""

    def waiting(self, part: Part) -> None:
        """Another process is building this part; its result will be used."""

    def started(self, part: Part, packages: int) -> None:
        """The build of ``part`` has begun; it has ``packages`` packages, of which cached ones are skipped."""

    def step(self, part: Part, what: str, packages_done: int) -> None:
        """``what`` is happening; so many packages are compiled."""

    def finished(self, part: Part, seconds: float, cached: bool) -> None:
        """The part is in the cache."""


def _expected(part: Part) -> str:
    minutes = part.expected_seconds / 60
    return f"{part.expected_seconds} s" if minutes < 2 else f"{minutes:.0f} min"


class LineProgress:
    """One line when a build begins, one about every 15 s, one when it ends."""

    def __init__(self, stream: TextIO | None = None, every: float = 15.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._every = every
        self._said: dict[str, float] = {}
        self._packages: dict[str, int] = {}
        self._lock = threading.Lock()

    def _say(self, text: str) -> None:
        with self._lock:
            print(text, file=self._stream, flush=True)

    def waiting(self, part: Part) -> None:
        self._say(f"{part.name}: another process is building it, waiting for its result")

    def started(self, part: Part, packages: int) -> None:
        self._said[part.name] = time.monotonic()
        self._packages[part.name] = packages
        self._say(
            f"{part.name}: building, up to {packages} packages (about {_expected(part)} the first time on 2 cores)"
        )

    def step(self, part: Part, what: str, packages_done: int) -> None:
        now = time.monotonic()
        if now - self._said.get(part.name, 0.0) < self._every:
            return
        self._said[part.name] = now
        self._say(f"{part.name}: {what}, {packages_done} of up to {self._packages.get(part.name, 0)} packages")

    def finished(self, part: Part, seconds: float, cached: bool) -> None:
        self._say(f"{part.name}: already built" if cached else f"{part.name}: built in {seconds:.0f} s")


class LiveProgress:
    """A bar per part on a terminal. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<14}"),
            BarColumn(),
            TextColumn("{task.fields[what]}", markup=False),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LiveProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def _task(self, part: Part, what: str) -> TaskID:
        if part.name not in self._tasks:
            self._tasks[part.name] = self._progress.add_task(part.name, total=None, what=what)
        return self._tasks[part.name]

    def waiting(self, part: Part) -> None:
        self._task(part, "another process is building it")

    def started(self, part: Part, packages: int) -> None:
        what = f"about {_expected(part)} the first time on 2 cores"
        self._progress.update(self._task(part, what), total=packages, what=what)

    def step(self, part: Part, what: str, packages_done: int) -> None:
        self._progress.update(self._task(part, what), completed=packages_done, what=what[:60])

    def finished(self, part: Part, seconds: float, cached: bool) -> None:
        what = "already built" if cached else f"built in {seconds:.0f} s"
        self._progress.update(self._task(part, what), total=1, completed=1, what=what)
