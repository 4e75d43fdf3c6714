"""What a row of a jobs table says: a carrier as text, and times in whatever form its columns have them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Final

from otel_kit.settings import ConfigurationError

#: Characters of a carrier that are read. Ours are shorter by far: W3C allows baggage 8,192.
_LONGEST_CARRIER: Final = 65_536

#: A moment as a column may hold it: a datetime, unix seconds, or ISO 8601 text; None where the column is empty.
When = datetime | float | int | Decimal | str | None


def carrier_text(headers: Mapping[str, str]) -> str:
    """Headers as one line of JSON in ASCII, which a text, JSON or JSONB column takes."""
    return json.dumps(headers, sort_keys=True)


def headers_of(carrier: object) -> Mapping[str, object]:
    """The headers that a column holds: text, bytes or what a JSON column gives back. Empty for anything else.

    Never raises: the column may have been written by anybody.
    """
    try:
        if isinstance(carrier, (bytes, bytearray, memoryview)):
            carrier = bytes(carrier).decode("utf-8", "replace")
        # A JSON column to which text was given holds a string of JSON, and gives that back.
        for _layer in range(2):
            if isinstance(carrier, str):
                if len(carrier) > _LONGEST_CARRIER:
                    return {}
                carrier = json.loads(carrier)
        return dict(carrier) if isinstance(carrier, Mapping) else {}
    except Exception:  # noqa: BLE001 - no JSON, nested too deep, or a mapping of the application's own
        return {}


def unix_seconds(value: When, parameter: str, timezone: tzinfo | None = None) -> float | None:
    """A column's time in unix seconds.

    Args:
        value: What the column holds. Text is read as ISO 8601, which includes what SQLite's CURRENT_TIMESTAMP writes.
        parameter: What an error message calls it.
        timezone: The zone of times that name none; without it such a time is refused, since a guess that is wrong by an
            hour looks like a wait of an hour.

    Raises:
        ConfigurationError: It is no time, or one without a zone where ``timezone`` is not given.
    """
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise _refused(parameter, value) from None
    if isinstance(value, datetime):
        return _of_datetime(value, parameter, timezone)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    raise _refused(parameter, value)


def _of_datetime(value: datetime, parameter: str, timezone: tzinfo | None) -> float | None:
    if value.utcoffset() is None:
        if timezone is None:
            raise ConfigurationError(
                f"{parameter}={value.isoformat()} has no time zone; accepted: a datetime with one, unix seconds, "
                "or a datetime without one together with timezone= (timezone=datetime.UTC where the column is in UTC)"
            )
        value = value.replace(tzinfo=timezone)
    try:
        return value.timestamp()
    except (OverflowError, ValueError, OSError):  # PostgreSQL's infinity, as some drivers render it
        return None


def _refused(parameter: str, value: object) -> ConfigurationError:
    return ConfigurationError(
        f"{parameter}={value!r:.200} is not a time; accepted: a datetime with a time zone, unix seconds, ISO 8601 text, None"
    )
