"""The statements over a table of jobs. None scans further than it counts, given an index that begins with the status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Integer,
    Select,
    String,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    type_coerce,
    union_all,
)

from otel_kit.integrations.sqlalchemy_jobs import clocks
from otel_kit.integrations.sqlalchemy_jobs.layout import BoundTable, Value

#: Groups of queue and state that one reading takes.
_MOST_GROUPS: Final = 1000
#: Characters of a carrier that are fetched.
_LONGEST_CARRIER: Final = 65_536


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one queue in one state.

    Attributes:
        state: ``ready``, ``scheduled``, ``reserved``, ``overdue``, ``silent`` or ``dead``.
        since: Ready rows: when the oldest was ready; running ones: when the oldest was started (unix seconds).
        now: The database's time (unix seconds).
    """

    queue: str
    state: str
    count: int
    since: float | None
    now: float


@dataclass(frozen=True, slots=True)
class SilentRow:
    """A row that counts as running and whose worker has not been heard of for too long. Times are unix seconds."""

    id: object
    queue: str
    name: str
    attempt: int
    carrier: object
    started_at: float | None
    heard_at: float | None
    now: float


def groups(bound: BoundTable, dialect: str, most: int, connection: Connection) -> list[Group]:
    """Count the rows by queue and state, at most ``most`` rows of each state."""
    found = connection.execute(_depth(bound, dialect, most))
    return [
        Group(str(row.queue), row.state, int(row.number), _float(row.since), float(row.now))
        for row in found
        if row.queue is not None
    ]


def _depth(bound: BoundTable, dialect: str, most: int) -> Select[Any]:
    layout = bound.layout
    queue = queue_of(bound)
    waiting = has_status(bound, layout.ready)
    run_at = bound.column("run_at")
    kinds: list[Select[Any]] = []
    if run_at is None:
        kinds.append(select(queue, _text("ready", "state"), _ready_at(bound, dialect).label("since")).where(waiting))
    else:
        later = clocks.is_later_than_now(run_at, dialect)
        due = and_(waiting, or_(run_at.is_(None), ~later))
        kinds.append(select(queue, _text("ready", "state"), _ready_at(bound, dialect).label("since")).where(due))
        kinds.append(select(queue, _text("scheduled", "state"), _nothing("since")).where(waiting, later))
    if layout.running:
        since = _since(bound, "started_at", dialect)
        kinds.append(
            select(queue, _running_state(bound, dialect).label("state"), since.label("since")).where(
                has_status(bound, layout.running)
            )
        )
    if layout.dead:
        kinds.append(select(queue, _text("dead", "state"), _nothing("since")).where(has_status(bound, layout.dead)))
    # A LIMIT inside a UNION has to be wrapped for SQLite.
    members = [select(kind.limit(most).subquery()) for kind in kinds]
    rows = union_all(*members).subquery()
    return (
        select(
            rows.c.queue,
            rows.c.state,
            func.count().label("number"),
            func.min(rows.c.since).label("since"),
            clocks.now(dialect).label("now"),
        )
        .group_by(rows.c.queue, rows.c.state)
        .limit(_MOST_GROUPS)
    )


def silent_rows(
    bound: BoundTable, dialect: str, most: int, connection: Connection, *, since: float = 0.0, lock: bool = False
) -> list[SilentRow]:
    """Rows whose worker has fallen silent, at most ``most``, in the order in which they did so.

    With ``since`` those only that were heard of then or later (unix seconds). With ``lock`` they are locked for the
    transaction, and those that somebody else has locked are left out, where the database can.
    """
    carrier, attempt = bound.column("carrier"), bound.column("attempt")
    heard = heard_at(bound, dialect)
    statement = (
        select(
            bound.named("id").label("id"),
            queue_of(bound),
            name_of(bound),
            (literal_column("1") if attempt is None else attempt).label("attempt"),
            (null() if carrier is None else carrier).label("carrier"),
            _since(bound, "started_at", dialect).label("started_at"),
            heard.label("heard_at"),
            clocks.now(dialect).label("now"),
        )
        .where(
            has_status(bound, bound.layout.running),
            is_silent(bound, dialect),
            heard >= bindparam(None, since, Float, unique=True),
        )
        .order_by(heard)
        .limit(most)
    )
    if lock:
        statement = statement.with_for_update(skip_locked=True)
    return [
        SilentRow(
            row.id, str(row.queue), str(row.name or ""), int(row.attempt or 1), row.carrier,
            _float(row.started_at), _float(row.heard_at), float(row.now),
        )
        for row in connection.execute(statement)
    ]  # fmt: skip


def has_status(bound: BoundTable, wanted: tuple[Value, ...]) -> ColumnElement[bool]:
    """Whether a row's status is one of these.

    They stand in the statement itself, so that a partial index over them can serve it, and the column's own type does not
    touch them: they are given as they are stored.
    """
    kind = Integer if all(isinstance(value, int) for value in wanted) else String
    column = type_coerce(bound.named("status"), kind)
    return column.in_([bindparam(None, value, kind, unique=True, literal_execute=True) for value in wanted])


def heard_at(bound: BoundTable, dialect: str) -> ColumnElement[Any]:
    """When a row's worker was last heard of; before its first heartbeat, when it claimed the row."""
    heartbeat = clocks.unix(bound.named("heartbeat_at"), dialect)
    if bound.column("started_at") is None:
        return heartbeat
    return func.coalesce(heartbeat, clocks.unix(bound.named("started_at"), dialect))


def is_silent(bound: BoundTable, dialect: str) -> ColumnElement[bool]:
    """Whether it was longer ago than the heartbeat's timeout."""
    return heard_at(bound, dialect) < clocks.now(dialect) - bindparam(
        None, bound.layout.heartbeat_timeout, Float, unique=True
    )


def queue_of(bound: BoundTable) -> ColumnElement[Any]:
    """A row's queue, as ``queue``."""
    fixed = bound.layout.queue
    return (cast(bound.named("queue_column"), String(255)).label("queue")) if fixed is None else _text(fixed, "queue")


def name_of(bound: BoundTable) -> ColumnElement[Any]:
    """A row's kind of job, as ``name``."""
    column = bound.column("name_column")
    return _text(bound.layout.name or bound.layout.label, "name") if column is None else column.label("name")


def _running_state(bound: BoundTable, dialect: str) -> ColumnElement[Any]:
    layout = bound.layout
    cases: list[tuple[ColumnElement[bool], ColumnElement[Any]]] = []
    if layout.heartbeat_timeout is not None:
        cases.append((is_silent(bound, dialect), _text("silent")))
    if layout.max_runtime is not None:
        started = clocks.unix(bound.named("started_at"), dialect)
        over = started < clocks.now(dialect) - bindparam(None, layout.max_runtime, Float, unique=True)
        cases.append((over, _text("overdue")))
    return case(*cases, else_=_text("reserved")) if cases else _text("reserved")


def _ready_at(bound: BoundTable, dialect: str) -> ColumnElement[Any]:
    created, wanted = (_since(bound, name, dialect) for name in ("created_at", "run_at"))
    if bound.column("created_at") is None:
        return wanted
    if bound.column("run_at") is None:
        return created
    # GREATEST has another name, or another mind about NULL, in every database.
    return case((wanted > created, wanted), else_=func.coalesce(created, wanted))


def _since(bound: BoundTable, name: str, dialect: str) -> ColumnElement[Any]:
    column = bound.column(name)
    return _nothing() if column is None else clocks.unix(column, dialect)


def _nothing(label: str | None = None) -> ColumnElement[Any]:
    # Typed, or PostgreSQL takes it for text beside the numbers of the other members.
    value: ColumnElement[Any] = cast(null(), Float)
    return value if label is None else value.label(label)


def _text(value: str, label: str | None = None) -> ColumnElement[Any]:
    found: ColumnElement[Any] = bindparam(None, value, String, unique=True, literal_execute=True)
    return found if label is None else found.label(label)


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
