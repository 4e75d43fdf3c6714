"""Log records: from `logging` to OTLP, with the trace, the job and the request that they belong to.

Records are taken where every logger hands them to its handlers, not by a handler of ours at the root: so nothing that an
application configures, before us or after us, can lose them, and nothing of ours changes what it prints.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from functools import wraps
from time import time_ns
from typing import Any, Final

from opentelemetry import baggage
from opentelemetry._logs import Logger, LogRecord, SeverityNumber
from opentelemetry.context import get_current
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from otel_kit import catalogue
from otel_kit.guard import guard
from otel_kit.settings import Settings
from otel_kit.telemetry.context import is_silenced, log_fields, silenced
from otel_kit.telemetry.export import GuardedLogExporter, factory, named
from otel_kit.telemetry.limits import MAX_KEY, cut
from otel_kit.telemetry.otlp import Otlp, is_otlp
from otel_kit.telemetry.plain import encodable, plain, stacktrace, text_of
from otel_kit.telemetry.redaction import Redactor

#: Access lines of servers: one for each request, and its span says the same and more.
_LEFT_OUT: Final = frozenset({"uvicorn.access", "gunicorn.access", "hypercorn.access"})
_STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: What counts by name in `otel_kit.log.records`; a category of somebody's own counts as ``app``.
_CATEGORIES: Final = frozenset({"jobs", "performance", "errors", "audit", "metrics", "app"})
_SEEDED: Final = (("WARN", "app"), ("ERROR", "errors"), ("FATAL", "errors"), ("ERROR", "jobs"))
#: `logging` level to OpenTelemetry severity (specification, "Logs Data Model", appendix B).
_SEVERITIES: Final = (
    (logging.CRITICAL, SeverityNumber.FATAL, "FATAL"),
    (logging.ERROR, SeverityNumber.ERROR, "ERROR"),
    (logging.WARNING, SeverityNumber.WARN, "WARN"),
    (logging.INFO, SeverityNumber.INFO, "INFO"),
    (logging.DEBUG, SeverityNumber.DEBUG, "DEBUG"),
)
#: Loggers that are remembered; a program with more of them makes names as it goes.
_MOST_LOGGERS: Final = 4096
_LOWEST: Final = (SeverityNumber.TRACE, "TRACE")


def build(
    settings: Settings, resource: Resource, redactor: Redactor, otlp: Otlp
) -> tuple[LoggerProvider, RecordFields]:
    """A provider that exports as the settings say, and the processor that completes its records."""
    fields = RecordFields(resource)
    provider = LoggerProvider(resource=fields.app_resource, shutdown_on_exit=False)
    provider.add_log_record_processor(fields)
    for name in named(settings.logs_exporter):
        if is_otlp(name):
            processor: LogRecordProcessor | None = otlp.records(name)
        else:
            make = factory("logs", name)
            processor = BatchLogRecordProcessor(GuardedLogExporter(make, redactor)) if make is not None else None
        if processor is not None:
            provider.add_log_record_processor(processor)
    return provider, fields


class RecordFields(LogRecordProcessor):
    """Completes a record: category, stream, request and user from baggage, fields of the running job; and counts it."""

    def __init__(self, resource: Resource) -> None:
        # Loki cuts its streams by resource attributes, and keeps audit records for longer: a resource of their own.
        self.app_resource = resource.merge(Resource({catalogue.STREAM: "app"}))
        self._audit_fields = Resource({catalogue.STREAM: "audit"})
        self._lock = threading.RLock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self.reset_after_fork()

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        with guard("completing a log record"):
            record = log_record.log_record
            attributes: Any = record.attributes  # the SDK hands it over as a mutable BoundedAttributes
            for name, value in log_fields(record.context).items():
                attributes.setdefault(name, value)
            for name in (catalogue.REQUEST_ID, catalogue.USER_ID):
                carried = baggage.get_baggage(name, record.context)
                if isinstance(carried, str):
                    attributes.setdefault(name, carried)
            category = str(attributes.setdefault(catalogue.LOG_CATEGORY, _category(record)))
            if category == "audit" and log_record.resource is not None:
                log_record.resource = log_record.resource.merge(self._audit_fields)
            with self._lock:
                self._counts[record.severity_text or "INFO", category if category in _CATEGORIES else "app"] += 1

    def counts(self) -> Iterable[tuple[float, dict[str, str]]]:
        """Records so far, by severity and category."""
        with self._lock:
            counted = list(self._counts.items())
        return [
            (float(number), {catalogue.LOG_SEVERITY: severity, catalogue.LOG_CATEGORY: category})
            for (severity, category), number in counted
        ]

    def reset_after_fork(self) -> None:
        """A child counts from zero, under a lock of its own."""
        self._lock = threading.RLock()
        # At zero from the start: an observed counter has no zero of its own, and the first error would be no increase.
        self._counts = Counter(dict.fromkeys(_SEEDED, 0))

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002
        """Nothing is held."""
        return True


def _category(record: LogRecord) -> str:
    number = record.severity_number
    return "errors" if number is not None and number.value >= SeverityNumber.ERROR.value else "app"


class Capture:
    """Turns a `logging` record into an OpenTelemetry one; the batch processor does the rest on its own thread.

    Args:
        provider: Where records go.
        level: Records below it are left out.
        code_attributes: Whether file, line and function come along.
    """

    def __init__(self, provider: LoggerProvider, level: int = logging.NOTSET, *, code_attributes: bool = False) -> None:
        self._provider = provider
        self._level = level
        self._code_attributes = code_attributes
        # The provider has them too, behind two locks that are not reentrant: a signal handler or a finalizer that logs
        # while its own thread holds one would wait for ever.
        self._loggers: dict[str, Logger] = {}

    def take(self, record: logging.LogRecord) -> None:
        """Take one record. Whatever it holds, nothing is raised."""
        if is_silenced():
            return
        # opentelemetry-python#3858: what the SDK logs while it takes a record must not come back in.
        with silenced(), guard("exporting a log record"):
            name = record.name if type(record.name) is str else text_of(record.name)
            if record.levelno >= self._level and name not in _LEFT_OUT:
                self._logger(name).emit(self._translate(record, name))

    def _logger(self, name: str) -> Logger:
        known = self._loggers.get(name)
        if known is None:
            known = self._provider.get_logger(encodable(cut(name, MAX_KEY)))
            if len(self._loggers) < _MOST_LOGGERS:
                self._loggers[name] = known
        return known

    def _translate(self, record: logging.LogRecord, name: str) -> LogRecord:
        found = ((number, text) for level, number, text in _SEVERITIES if record.levelno >= level)
        number, text = next(found, _LOWEST)
        attributes = self._attributes(record, name)
        event_name = attributes.pop("event.name", None)
        return LogRecord(
            timestamp=_time_of(record),
            observed_timestamp=time_ns(),
            context=get_current(),
            severity_text=text,
            severity_number=number,
            body=encodable(cut(_message(record))),
            attributes=attributes,
            event_name=str(event_name) if event_name else None,
        )

    def _attributes(self, record: logging.LogRecord, name: str) -> dict[str, Any]:
        hidden = _hidden_fields.get(name.partition(".")[0], frozenset())
        attributes = {
            _key(field): plain(value)
            for field, value in vars(record).copy().items()
            if field not in _STANDARD_FIELDS and field not in hidden
        }
        if self._code_attributes:
            attributes["code.file.path"] = plain(record.pathname)
            attributes["code.line.number"] = plain(record.lineno)
            attributes["code.function.name"] = plain(record.funcName)
        if isinstance(record.exc_info, tuple) and isinstance(record.exc_info[0], type):
            kind, error, trace = record.exc_info
            attributes["exception.type"] = encodable(_qualified(kind))
            attributes["exception.message"] = encodable(cut(text_of(error)))
            attributes["exception.stacktrace"] = stacktrace(kind, error, trace)
        return attributes


def _key(field: Any) -> str:
    if type(field) is str and len(field) <= MAX_KEY and field.isascii():
        return field
    return encodable(cut(text_of(field), MAX_KEY))


def _time_of(record: logging.LogRecord) -> int:
    try:
        return max(0, int(record.created * 1e9))
    except (TypeError, ValueError, OverflowError):  # a record that somebody made by hand
        return time_ns()


def _message(record: logging.LogRecord) -> str:
    try:
        return text_of(record.getMessage())
    except Exception:  # noqa: BLE001  # "%d items" % "x": Python prints that mistake; we keep what was meant
        return f"{text_of(record.msg)} {text_of(record.args)}"


def _qualified(kind: type[BaseException]) -> str:
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


_hidden_fields: dict[str, frozenset[str]] = {}


def hide_field(logger: str, name: str) -> None:
    """Leave an extra field of a library's own log records out, by the first part of the logger's name."""
    _hidden_fields[logger] = _hidden_fields.get(logger, frozenset()) | {name}


def install(capture: Capture) -> Callable[[], None]:
    """Have every record of every logger pass by; the function returned takes that back."""
    original = logging.Logger.callHandlers
    active = True

    @wraps(original)
    def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
        if active:
            capture.take(record)
        original(self, record)

    def undo() -> None:
        nonlocal active
        # Somebody else may have wrapped it since: then ours stays inside theirs, and takes nothing any more.
        active = False
        if logging.Logger.callHandlers is call_handlers:
            logging.Logger.callHandlers = original  # type: ignore[method-assign]

    logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
    return undo
