"""Rows whose worker has fallen silent: each is recorded as `lost` once."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from otel_kit.guard import guard
from otel_kit.integrations.sqlalchemy_jobs.layout import JobTable
from otel_kit.integrations.sqlalchemy_jobs.statements import SilentRow
from otel_kit.jobs import delivery
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import get_recorder
from otel_kit.jobs.rows import headers_of
from otel_kit.telemetry.plain import text_of

#: Attempts that are remembered as reported.
_MOST_REMEMBERED: Final = 10_000


class WorkerLostError(Exception):
    """A row counts as running, and the worker that claimed it no longer says that it lives."""


class Losses:
    """What this process has reported as lost.

    Nothing in the table says so, and a row that nobody recovers stays as it is for ever. So a process that begins to watch
    leaves alone what fell silent long before: the process that watched then has reported it.

    Args:
        layout: The table.
        system: The database's name.
        within: How far back the process that begins to watch looks, seconds.
    """

    def __init__(self, layout: JobTable, system: str, within: float) -> None:
        self._layout = layout
        self._system = system
        self._since = time.time() - within
        self._reported: OrderedDict[tuple[str, int], None] = OrderedDict()
        #: Only rows that were heard of then or later are still to be reported (unix seconds, the database's clock). Rows fall
        #: silent in the order in which they were last heard of.
        self.heard_since = self._since - (layout.heartbeat_timeout or 0.0)

    def report(self, rows: Sequence[SilentRow]) -> int:
        """Record those that have not been, and give their number."""
        fresh = [row for row in rows if self._is_new(row)]
        self.heard_since = max([self.heard_since, *(row.heard_at for row in rows if row.heard_at is not None)])
        for row in fresh:
            with guard("table: recording a lost row"):
                self._record(row)
        return len(fresh)

    def _is_new(self, row: SilentRow) -> bool:
        key = text_of(row.id), row.attempt
        if key in self._reported:
            self._reported.move_to_end(key)
            return False
        if row.heard_at is None or _here(row.heard_at, row) + (self._layout.heartbeat_timeout or 0.0) < self._since:
            return False
        self._reported[key] = None
        while len(self._reported) > _MOST_REMEMBERED:
            self._reported.popitem(last=False)
        return True

    def _record(self, row: SilentRow) -> None:
        job = job_of(row, self._layout, self._system)
        silent_for = 0.0 if row.heard_at is None else row.now - row.heard_at
        error = WorkerLostError(f"no heartbeat for {silent_for:.0f} s while the row says that it is running")
        started_at = None if row.started_at is None else _here(row.started_at, row)
        recorder = get_recorder()
        recorder.tally.lost(job, error)
        recorder.died(job, Outcome.LOST, started_at, error)


def job_of(row: SilentRow, layout: JobTable, system: str) -> Job:
    """The attempt that a row is in."""
    return delivery.delivered(
        row.name, text_of(row.id), row.queue, system, headers_of(row.carrier),
        attempt=row.attempt, max_runtime=layout.max_runtime,
    )  # fmt: skip


def _here(moment: float, row: SilentRow) -> float:
    """A moment of the database's clock by ours."""
    return moment + (time.time() - row.now)
