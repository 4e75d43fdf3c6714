"""A job's log events: what happened, as a sentence with the fields to find it by."""

from __future__ import annotations

import time
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry._logs import LogRecord, SeverityNumber, get_logger
from opentelemetry.context import Context
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from otel_kit import catalogue
from otel_kit._version import __version__
from otel_kit.jobs import errors, names
from otel_kit.jobs.model import Job, Outcome
from otel_kit.telemetry.limits import cut

_EVENTS: Final = {
    Outcome.SUCCESS: (catalogue.JOB_COMPLETED, SeverityNumber.INFO, "INFO"),
    Outcome.FAILURE: (catalogue.JOB_FAILED, SeverityNumber.ERROR, "ERROR"),
    Outcome.RETRY: (catalogue.JOB_RETRIED, SeverityNumber.WARN, "WARN"),
    Outcome.EXPIRED: (catalogue.JOB_EXPIRED, SeverityNumber.WARN, "WARN"),
    Outcome.REVOKED: (catalogue.JOB_REVOKED, SeverityNumber.WARN, "WARN"),
    Outcome.REJECTED: (catalogue.JOB_REJECTED, SeverityNumber.WARN, "WARN"),
    Outcome.LOST: (catalogue.JOB_LOST, SeverityNumber.ERROR, "ERROR"),
    Outcome.MISSED: (catalogue.JOB_MISSED, SeverityNumber.WARN, "WARN"),
    Outcome.SKIPPED: (catalogue.JOB_SKIPPED, SeverityNumber.WARN, "WARN"),
}


def named(job: Job) -> dict[str, str]:
    """The job's name, as bounded on spans and records as on metrics, which are made of spans; and what it was, if more."""
    label = names.jobs.bounded(job.name)
    if label == job.name:
        return {catalogue.JOB_NAME: label}
    return {catalogue.JOB_NAME: label, catalogue.JOB_NAME_ORIGINAL: cut(job.name)}


def error_attributes(error: BaseException) -> dict[str, AttributeValue]:
    return {
        catalogue.ERROR_TYPE: errors.type_name(error),
        catalogue.JOB_ERROR_FINGERPRINT: errors.fingerprint(error),
        catalogue.JOB_ERROR_CATEGORY: errors.category(error),
    }


def add_exception(span: Span, error: BaseException) -> None:
    # The SDK's own record_exception raises where the error's str() does.
    span.add_event(
        "exception",
        {
            "exception.type": errors.type_name(error),
            "exception.message": errors.message(error),
            "exception.stacktrace": errors.stacktrace(error),
        },
    )


def log_fields(job: Job) -> dict[str, str | int]:
    fields: dict[str, str | int] = {
        **named(job),
        catalogue.JOB_ID: job.id,
        catalogue.JOB_ATTEMPT: job.attempt,
    }
    if job.queue:
        fields[catalogue.MESSAGING_DESTINATION] = job.queue
    return fields


def emit(
    event: str,
    severity: tuple[SeverityNumber, str],
    sentence: str,
    job: Job,
    attributes: dict[str, AttributeValue],
    context: Context | None = None,
    at: int | None = None,
) -> None:
    get_logger("otel_kit.jobs", __version__).emit(
        LogRecord(
            timestamp=at or time.time_ns(),
            context=context or otel_context.get_current(),
            severity_number=severity[0],
            severity_text=severity[1],
            body=sentence,
            event_name=event,
            attributes={**log_fields(job), **attributes, catalogue.LOG_CATEGORY: "jobs"},
        )
    )


def emit_outcome(
    job: Job,
    outcome: Outcome,
    duration: float | None,
    attributes: dict[str, AttributeValue],
    error: BaseException | None,
    context: Context | None = None,
    *,
    expected: bool = False,
) -> None:
    event, number, text = _EVENTS[outcome]
    if expected:
        number, text = SeverityNumber.WARN, "WARN"
    took = f" after {duration:.3f} s" if duration is not None else ""
    why = f": {errors.type_name(error)}: {errors.message(error)}" if error is not None else ""
    sentence = f"Job {job.name} {event.removeprefix('job.')}{took}, attempt {job.attempt}{why}"
    emit(event, (number, text), sentence, job, attributes, context)
