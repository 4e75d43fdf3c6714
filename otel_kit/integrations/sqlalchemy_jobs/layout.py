"""What the columns of a jobs table are called and what stands in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, MetaData, Table

from otel_kit.settings import ConfigurationError

#: A column: its name, or any expression over the table's columns.
Column = str | ColumnElement[Any]
#: A value of the status column, as the column stores it.
Value = str | int

_COLUMNS: Final = (
    "id", "status", "queue_column", "name_column", "attempt", "carrier", "created_at", "run_at", "started_at", "heartbeat_at",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JobTable:
    """A table of jobs, as its owner describes it; see `otel_kit.integrations.sqlalchemy_jobs.observe_table`."""

    table: Any
    id: Column
    status: Column
    ready: tuple[Value, ...]
    running: tuple[Value, ...]
    dead: tuple[Value, ...]
    queue: str | None
    queue_column: Column | None
    queues: tuple[str, ...]
    name: str | None
    name_column: Column | None
    attempt: Column | None
    carrier: Column | None
    created_at: Column | None
    run_at: Column | None
    started_at: Column | None
    heartbeat_at: Column | None
    max_runtime: float | None
    heartbeat_timeout: float | None

    def __post_init__(self) -> None:
        if (self.queue is None) == (self.queue_column is None):
            raise ConfigurationError(
                "queue=, queue_column=: exactly one is accepted, a fixed name or a column that holds it"
            )
        if self.queue_column is not None and not self.queues:
            raise ConfigurationError(
                "queues=() is not accepted with queue_column=; accepted: the names of the queues to begin with"
            )
        if not self.ready:
            raise ConfigurationError(
                "ready=() is not accepted; accepted: the values of the status column that mean ready"
            )
        _positive("max_runtime", self.max_runtime)
        _positive("heartbeat_timeout", self.heartbeat_timeout)
        if self.heartbeat_timeout is not None and self.heartbeat_at is None:
            raise ConfigurationError("heartbeat_timeout= needs heartbeat_at=, the column that a worker renews")
        if self.max_runtime is not None and self.started_at is None:
            raise ConfigurationError("max_runtime= needs started_at=, the column that holds when a row was claimed")
        table = getattr(self.table, "__table__", self.table)
        if not isinstance(table, (Table, str)):
            raise ConfigurationError(
                f"table={table!r:.200} is not accepted; accepted: a Table, a mapped class or a table's name"
            )
        object.__setattr__(self, "table", table)
        if isinstance(table, Table):
            self.bind(table)

    @property
    def known_queues(self) -> tuple[str, ...]:
        """The queues that exist whether or not there is a row of theirs."""
        return (self.queue,) if self.queue is not None else self.queues

    @property
    def label(self) -> str:
        """The table's name."""
        return self.table if isinstance(self.table, str) else str(self.table.fullname)

    def reflected(self, connection: Connection) -> Table:
        """The table, read from the database where it was given by name."""
        if isinstance(self.table, Table):
            return self.table
        schema, _dot, name = self.table.rpartition(".")
        return Table(name, MetaData(), schema=schema or None, autoload_with=connection, resolve_fks=False)

    def bind(self, table: Table) -> BoundTable:
        """The columns themselves.

        Raises:
            ConfigurationError: The table has no column of a name that was given.
        """
        found: dict[str, ColumnElement[Any] | None] = {}
        for parameter in _COLUMNS:
            given = getattr(self, parameter)
            if isinstance(given, str):
                if given not in table.c:
                    accepted = ", ".join(table.c.keys())
                    raise ConfigurationError(
                        f"{parameter}={given!r} is not a column of {table.fullname}; accepted: {accepted}"
                    )
                given = table.c[given]
            found[parameter] = given
        return BoundTable(self, table, found)


class BoundTable:
    """A description and the columns that it names."""

    def __init__(self, layout: JobTable, table: Table, columns: dict[str, ColumnElement[Any] | None]) -> None:
        self.layout = layout
        self.table = table
        self._columns = columns

    def column(self, parameter: str) -> ColumnElement[Any] | None:
        """The column of a role, None where nobody has named one."""
        return self._columns[parameter]

    def named(self, parameter: str) -> ColumnElement[Any]:
        """The column of a role that always has one."""
        column = self._columns[parameter]
        if column is None:
            raise ConfigurationError(
                f"{parameter}= is needed here; accepted: the name of a column of {self.table.fullname}"
            )
        return column


def values(parameter: str, given: Value | Sequence[Value]) -> tuple[Value, ...]:
    """One value of the status column, or several.

    Raises:
        ConfigurationError: They are neither text nor whole numbers.
    """
    try:
        listed = (given,) if isinstance(given, (str, int)) else tuple(given)
    except TypeError:
        listed = (given,)  # type: ignore[assignment]
    for value in listed:
        if not isinstance(value, (str, int)):
            raise ConfigurationError(
                f"{parameter}={value!r:.200} is not accepted; accepted: text or a whole number, as the column stores it"
            )
    return listed


def _positive(parameter: str, seconds: float | None) -> None:
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise ConfigurationError(f"{parameter}={seconds!r:.200} is not accepted; accepted: seconds, more than 0")
