"""What the current work is called: fields that a job, or whatever else runs, lends to the log records below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from opentelemetry.context import Context, create_key, get_value, set_value

_LOG_FIELDS: Final = create_key("otel-kit-log-fields")


def with_log_fields(fields: Mapping[str, str | int], context: Context | None = None) -> Context:
    """A context in which every log record carries ``fields`` too."""
    return set_value(_LOG_FIELDS, {**log_fields(context), **fields}, context)


def log_fields(context: Context | None = None) -> Mapping[str, str | int]:
    """The fields in force."""
    return cast("Mapping[str, str | int]", get_value(_LOG_FIELDS, context) or {})
