"""What the current work is called, and when its own noise is not telemetry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, cast

from opentelemetry.context import Context, create_key, get_value, set_value

_LOG_FIELDS: Final = create_key("otel-kit-log-fields")
_SILENCED: ContextVar[bool] = ContextVar("otel_kit_silenced", default=False)


def with_log_fields(fields: Mapping[str, str | int], context: Context | None = None) -> Context:
    """A context in which every log record carries ``fields`` too: what a job, or whatever else runs, lends to them."""
    return set_value(_LOG_FIELDS, {**log_fields(context), **fields}, context)


def log_fields(context: Context | None = None) -> Mapping[str, str | int]:
    """The fields in force."""
    return cast("Mapping[str, str | int]", get_value(_LOG_FIELDS, context) or {})


@contextmanager
def silenced() -> Iterator[None]:
    """While it lasts, what is logged here is not exported: an export that logs would feed itself for ever."""
    token = _SILENCED.set(True)
    try:
        yield
    finally:
        _SILENCED.reset(token)


def is_silenced() -> bool:
    """Whether that is so now."""
    return _SILENCED.get()
