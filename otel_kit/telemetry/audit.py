"""Audit records: who did what to which thing, kept apart from other logs and for longer."""

from __future__ import annotations

import time

from opentelemetry._logs import LogRecord, SeverityNumber, get_logger
from opentelemetry.context import get_current

from otel_kit import catalogue
from otel_kit._version import __version__
from otel_kit.guard import guard
from otel_kit.telemetry.context import silenced
from otel_kit.telemetry.plain import plain


def audit(action: str, /, **attributes: object) -> None:
    """Record an action for the audit log.

    The record carries the trace, request and job that it happened in. It does not pass through `logging`, so no level drops
    it. Secrets are redacted as everywhere.

    Args:
        action: What was done, as a short name (``"user.deleted"``).
        **attributes: Who, to what, why.
    """
    with silenced(), guard("writing an audit record"):
        action = str(plain(action))
        fields = {name: plain(value) for name, value in attributes.items()}
        get_logger("otel_kit.audit", __version__).emit(
            LogRecord(
                timestamp=time.time_ns(),
                context=get_current(),
                severity_number=SeverityNumber.INFO,
                severity_text="INFO",
                body=action,
                event_name="audit",
                attributes={**fields, catalogue.AUDIT_ACTION: action, catalogue.LOG_CATEGORY: "audit"},
            )
        )
