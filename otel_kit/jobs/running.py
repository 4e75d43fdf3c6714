"""The jobs that are running now and that this process answers for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.trace import SpanContext

from otel_kit.jobs.model import Job


@dataclass(slots=True)
class Entry:
    """One running job.

    Attributes:
        started_at: Unix seconds.
        context: Its span, where that is known here; the main process of a pool does not know it.
        progress: From 0 to 1, where the job has said how far it is.
        message: What it has said last.
    """

    job: Job
    started_at: float
    context: SpanContext | None = None
    progress: float | None = None
    message: str = ""


class Running:
    """The registry. Its methods are quick and never wait for anybody but each other."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: dict[tuple[str, int, str], list[Entry]] = {}
        #: Called after each beginning and end; must not wait for anything.
        self.on_change: list[Callable[[], None]] = []

    def reset_after_fork(self) -> None:
        """A child runs nothing yet, and nobody listens."""
        self._lock = threading.RLock()
        self._entries.clear()
        self.on_change.clear()

    def begin(self, job: Job, started_at: float, context: SpanContext | None = None) -> Entry:
        """A run has begun at ``started_at`` (unix seconds)."""
        entry = Entry(job, started_at, context)
        with self._lock:
            # The same attempt may be delivered twice, and run side by side.
            self._entries.setdefault(_key(job), []).append(entry)
        self._changed()
        return entry

    def end(self, job: Job) -> Entry | None:
        """A run of this job has ended; the oldest, if there are several. None if none was known."""
        with self._lock:
            entries = self._entries.get(_key(job))
            if not entries:
                return None
            entry = entries.pop(0)
            if not entries:
                del self._entries[_key(job)]
        self._changed()
        return entry

    def snapshot(self) -> list[Entry]:
        """Those that run now, oldest first."""
        with self._lock:
            entries = [entry for several in self._entries.values() for entry in several]
        return sorted(entries, key=lambda entry: entry.started_at)

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._entries.values()))

    def _changed(self) -> None:
        for tell in list(self.on_change):
            tell()


def _key(job: Job) -> tuple[str, int, str]:
    return job.id, job.attempt, job.name
