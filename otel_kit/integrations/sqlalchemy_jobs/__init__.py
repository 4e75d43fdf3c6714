"""Queues that live in a SQL table: `observe_table` reports their depth, age and losses, `recover_rows` sets lost rows back.

Who publishes and who works says so with `otel_kit.jobs.publish` and `otel_kit.jobs.run`, which need no SQLAlchemy. This
package looks at the table from beside: over connections of its own, on threads of its own, and it changes nothing but for
`recover_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from otel_kit.integrations.sqlalchemy_jobs.access import Access
from otel_kit.integrations.sqlalchemy_jobs.layout import Column, JobTable, Value, values
from otel_kit.integrations.sqlalchemy_jobs.locks import lease_of
from otel_kit.integrations.sqlalchemy_jobs.observer import TableObserver, TableState
from otel_kit.integrations.sqlalchemy_jobs.recovery import RecoveredRow, recover
from otel_kit.jobs.queues import ReporterLease
from otel_kit.settings import ConfigurationError

__all__ = ["RecoveredRow", "TableObserver", "TableState", "observe_table", "recover_rows"]


def observe_table(
    engine: Engine | AsyncEngine,
    table: Any,
    *,
    queue: str | None = None,
    queue_column: Column | None = None,
    queues: Sequence[str] = (),
    id: Column = "id",  # noqa: A002 - what it is called everywhere else
    status: Column = "status",
    ready: Value | Sequence[Value] = "ready",
    running: Value | Sequence[Value] = "running",
    dead: Value | Sequence[Value] = (),
    created_at: Column | None = "created_at",
    run_at: Column | None = None,
    started_at: Column | None = None,
    heartbeat_at: Column | None = None,
    max_runtime: float | None = None,
    heartbeat_timeout: float | None = None,
    name: str | None = None,
    name_column: Column | None = None,
    attempt: Column | None = None,
    carrier: Column | None = None,
    system: str | None = None,
    lease: ReporterLease | bool = True,
    most: int = 100_000,
    timeout: float = 2.0,
    lost_within: float = 900.0,
) -> TableObserver:
    """Report the queues in a table from this process, unless another one does: `job.queue.depth`, `job.queue.oldest_age`.

    Call it once in every worker process when it is ready. The table is read with one SELECT at each interval
    (OTEL_KIT_QUEUE_INTERVAL), which an index that begins with ``status`` keeps short.

    Args:
        engine: The application's, sync or async: PostgreSQL, SQLite in a file, MySQL or MariaDB. Its pool is not used.
        table: A ``Table``, a mapped class, or a table's name (``"jobs"``, ``"schema.jobs"``), which is looked up then.
        queue: The one queue that all rows are in.
        queue_column: Or the column that says which; every column may be an expression over the table's columns, too.
        queues: With ``queue_column``: the queues that exist even where they are empty. Others are added as they are found,
            200 in all.
        id: The column of the row's id.
        status: The column of its state.
        ready: Values of ``status`` for rows that wait, as they are stored; those with a ``run_at`` to come are scheduled.
        running: Values for rows that a worker has claimed.
        dead: Values for rows that were given up. Done rows are of no interest here.
        created_at: When a row came to be. Times may be timestamps (without a zone: UTC), unix seconds, or with SQLite
            text in ISO 8601.
        run_at: When it is to start at the earliest.
        started_at: When it was claimed.
        heartbeat_at: When its worker last said that it lives.
        max_runtime: Seconds after which a running row is overdue.
        heartbeat_timeout: Seconds without a heartbeat after which its worker is lost, at least three times as many as lie
            between two. The run is then recorded as ``lost``, once for each id and attempt.
        name: What kind of job all rows are; left out, the table's name.
        name_column: Or the column that says which.
        attempt: The column that holds 1 during the first attempt.
        carrier: The column of what `otel_kit.jobs.publish` gave: a lost run is then part of its trace.
        system: `messaging.system`; left out, the database's name as SQLAlchemy has it.
        lease: What decides which process reports. True: a lock in the database (PostgreSQL, MySQL) or on a file beside it
            (SQLite); False: every process reports, for example where there is one; or another lease.
        most: Rows of each state that are counted at most; a count that reaches it means so many or more.
        timeout: Seconds that a reading may take.
        lost_within: How far back a process that begins to watch looks for rows that fell silent, seconds.

    Raises:
        ConfigurationError: A setting is not accepted; the message names it.
    """
    layout = JobTable(
        table=table, id=id, status=status, ready=values("ready", ready), running=values("running", running),
        dead=values("dead", dead), queue=queue, queue_column=queue_column, queues=tuple(queues), name=name,
        name_column=name_column, attempt=attempt, carrier=carrier, created_at=created_at, run_at=run_at,
        started_at=started_at, heartbeat_at=heartbeat_at, max_runtime=max_runtime, heartbeat_timeout=heartbeat_timeout,
    )  # fmt: skip
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ConfigurationError(f"most={most!r:.200} is not accepted; accepted: a whole number, 1 or more")
    access = Access(engine, _seconds("timeout", timeout))
    decides = (lease_of(access) if lease else None) if isinstance(lease, bool) else lease
    observer = TableObserver(
        access, layout, system or access.dialect, most, decides, _seconds("lost_within", lost_within)
    )
    observer.watch()
    return observer


def recover_rows(
    engine: Engine | AsyncEngine,
    table: Any,
    *,
    heartbeat_at: Column,
    heartbeat_timeout: float,
    queue: str | None = None,
    queue_column: Column | None = None,
    id: Column = "id",  # noqa: A002
    status: Column = "status",
    ready: Value = "ready",
    running: Value | Sequence[Value] = "running",
    started_at: Column | None = None,
    name: str | None = None,
    name_column: Column | None = None,
    attempt: Column | None = None,
    carrier: Column | None = None,
    also_set: Mapping[str, Any] | None = None,
    system: str | None = None,
    limit: int = 100,
    timeout: float = 10.0,
    dry_run: bool = True,
) -> list[RecoveredRow]:
    """Set rows whose worker no longer says that it lives back to ``ready``. Nothing calls it but the application.

    Only a dead heartbeat counts, by the database's clock and by this host's; the time that a row has been running does not.
    A row whose heartbeat comes back in time, or that somebody holds locked, stays as it is. Each row that goes back is one
    audit record (``job.recovered``). The job must bear to be run twice: a worker that was cut off from the database may be
    at work still. Waits for the database; in a coroutine call it with `asyncio.to_thread`.

    Args:
        engine, table, queue, queue_column, id, status, running, started_at, name, name_column, attempt, carrier, system: As
            for `observe_table`. Without ``started_at`` a row that has no heartbeat at all stays as it is.
        heartbeat_at: When a row's worker last said that it lives.
        heartbeat_timeout: Seconds without a heartbeat after which a worker counts as dead.
        ready: The value of ``status`` that the rows are given.
        also_set: Other columns to change, for example ``{"worker": None}``.
        limit: Rows that are set back at most.
        timeout: Seconds that it may take.
        dry_run: Only say which rows it would be.

    Returns:
        The rows that went back, or that would.

    Raises:
        ConfigurationError: A setting is not accepted.
        TimeoutError: The database did not answer in time.
    """
    fixed = queue if queue is not None or queue_column is not None else ""
    layout = JobTable(
        table=table, id=id, status=status, ready=values("ready", ready), running=values("running", running), dead=(),
        queue=fixed, queue_column=queue_column, queues=("",), name=name, name_column=name_column, attempt=attempt,
        carrier=carrier, created_at=None, run_at=None, started_at=started_at, heartbeat_at=heartbeat_at, max_runtime=None,
        heartbeat_timeout=heartbeat_timeout,
    )  # fmt: skip
    access = Access(engine, _seconds("timeout", timeout))
    return recover(
        access, layout, system or access.dialect, to=ready, also_set=also_set or {}, limit=limit, dry_run=dry_run
    )


def _seconds(parameter: str, given: float) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= 7 * 86_400:
        raise ConfigurationError(
            f"{parameter}={given!r:.200} is not accepted; accepted: seconds, more than 0, at most a week"
        )
    return float(given)
