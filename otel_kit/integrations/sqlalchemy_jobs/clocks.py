"""Times in SQL, whatever a column's type is: all become unix seconds by the database's own clock.

Columns without a time zone count as UTC, which is also what the session's zone is set to.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Float, Integer, Numeric, String, extract, func, literal_column, type_coerce
from sqlalchemy.types import DateTime

from otel_kit.settings import ConfigurationError

#: The Julian day of 1970-01-01T00:00Z, and the seconds of one.
_EPOCH_DAY: Final = "2440587.5"
_DAY: Final = "86400.0"
SUPPORTED: Final = ("postgresql", "sqlite", "mysql", "mariadb")


def require(dialect: str) -> None:
    """Refuse a database whose clock is not known here.

    Raises:
        ConfigurationError: So it is.
    """
    if dialect not in SUPPORTED:
        raise ConfigurationError(f"engine of {dialect} is not accepted; accepted: {', '.join(SUPPORTED)}")


def now(dialect: str) -> ColumnElement[float]:
    """The database's time now, unix seconds; one and the same within a statement."""
    text = {
        "postgresql": "extract(epoch from statement_timestamp())",
        "sqlite": f"((julianday('now') - {_EPOCH_DAY}) * {_DAY})",
    }.get(dialect, "unix_timestamp(now(6))")
    return literal_column(text, Float)


def unix(column: ColumnElement[Any], dialect: str) -> ColumnElement[float]:
    """A column's time as unix seconds."""
    if isinstance(column.type, (Integer, Numeric, Float)):
        return type_coerce(column, Float)
    if dialect == "postgresql":
        return type_coerce(extract("epoch", column), Float)
    if dialect == "sqlite":
        day = func.julianday(type_coerce(column, String))
        return type_coerce((day - literal_column(_EPOCH_DAY)) * literal_column(_DAY), Float)
    return type_coerce(func.unix_timestamp(column), Float)


def is_later_than_now(column: ColumnElement[Any], dialect: str) -> ColumnElement[bool]:
    """Whether a column's time is yet to come; where the database can, so that an index on the column serves."""
    if dialect == "postgresql" and isinstance(column.type, DateTime):
        # Compared without a zone it would be in the session's, which is UTC.
        moment = "statement_timestamp()" if column.type.timezone else "timezone('UTC', statement_timestamp())"
        return column > literal_column(moment, column.type)
    return unix(column, dialect) > now(dialect)
