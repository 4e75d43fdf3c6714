"""Rows of dead workers go back to be run again: only where somebody asks for it, and never by the clock alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column as SchemaColumn
from sqlalchemy import Connection, update

from otel_kit.guard import guard
from otel_kit.integrations.sqlalchemy_jobs import statements
from otel_kit.integrations.sqlalchemy_jobs.access import Access
from otel_kit.integrations.sqlalchemy_jobs.layout import BoundTable, JobTable
from otel_kit.integrations.sqlalchemy_jobs.silence import job_of
from otel_kit.integrations.sqlalchemy_jobs.statements import SilentRow
from otel_kit.jobs.recorder import get_recorder
from otel_kit.settings import ConfigurationError
from otel_kit.telemetry.audit import audit
from otel_kit.telemetry.plain import text_of


@dataclass(frozen=True, slots=True)
class RecoveredRow:
    """A row that went back, or that would.

    Attributes:
        silent_for: Seconds since its worker was last heard of.
    """

    id: object
    name: str
    queue: str
    attempt: int
    silent_for: float


def recover(
    access: Access, layout: JobTable, system: str, *, to: Any, also_set: Mapping[str, Any], limit: int, dry_run: bool
) -> list[RecoveredRow]:
    """Set silent rows back; see `otel_kit.integrations.sqlalchemy_jobs.recover_rows`."""
    if dry_run:
        found = access.read(
            lambda connection: _candidates(_bind(layout, connection, also_set), access, limit, connection)
        )
        return [_recovered(row) for row in found]
    rows = access.write(
        lambda connection: _set_back(_bind(layout, connection, also_set), access, to, also_set, limit, connection)
    )
    for row in rows:
        with guard("table: recording a recovery"):
            job = job_of(row, layout, system)
            get_recorder().tally.recovered(job, "requeued")
            audit(
                "job.recovered", job_id=job.id, job_name=job.name, job_attempt=job.attempt, queue=job.queue,
                table=layout.label, silent_for=round(_recovered(row).silent_for, 3), status=text_of(to),
            )  # fmt: skip
    return [_recovered(row) for row in rows]


def _bind(layout: JobTable, connection: Connection, also_set: Mapping[str, Any]) -> BoundTable:
    bound = layout.bind(layout.reflected(connection))
    accepted = ", ".join(bound.table.c.keys())
    for name in also_set:
        if name not in bound.table.c:
            raise ConfigurationError(
                f"also_set={name!r} is not a column of {bound.table.fullname}; accepted: {accepted}"
            )
    if not isinstance(bound.named("status"), SchemaColumn):
        raise ConfigurationError(
            f"status= is an expression, which cannot be set; accepted: a column, one of {accepted}"
        )
    return bound


def _candidates(
    bound: BoundTable, access: Access, limit: int, connection: Connection, *, lock: bool = False
) -> list[SilentRow]:
    rows = statements.silent_rows(bound, access.dialect, limit, connection, lock=lock)
    # By both clocks: one of them may have written the heartbeats, and a host whose clock is ahead sees the dead everywhere.
    timeout = bound.layout.heartbeat_timeout or 0.0
    return [row for row in rows if row.heard_at is not None and row.heard_at < time.time() - timeout]


def _set_back(
    bound: BoundTable, access: Access, to: Any, also_set: Mapping[str, Any], limit: int, connection: Connection
) -> list[SilentRow]:
    # A row that somebody else has locked is in somebody's hands: it is passed over.
    rows = _candidates(bound, access, limit, connection, lock=True)
    if not rows:
        return []
    identifier = bound.named("id")
    # The conditions stand here again, since SQLite has no such locks: a row whose heartbeat has come back stays as it is.
    guarded = (
        update(bound.table)
        .where(
            identifier.in_([row.id for row in rows]),
            statements.has_status(bound, bound.layout.running),
            statements.is_silent(bound, access.dialect),
        )
        .values({bound.named("status"): to, **{bound.table.c[name]: value for name, value in also_set.items()}})
    )
    if not connection.dialect.update_returning:  # MySQL: they are locked since they were looked at
        connection.execute(guarded)
        return rows
    changed = set(connection.execute(guarded.returning(identifier)).scalars())
    return [row for row in rows if row.id in changed]


def _recovered(row: SilentRow) -> RecoveredRow:
    return RecoveredRow(
        row.id, row.name, row.queue, row.attempt, 0.0 if row.heard_at is None else row.now - row.heard_at
    )
