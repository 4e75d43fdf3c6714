"""Log records: from `logging` to OTLP, with the trace, the job and the request that they belong to.

The handler stands at the root logger and, beside it, at loggers that do not pass their records on. It never takes
anything away: an application that has configured no logging keeps its warnings on stderr, and one that configures it later
keeps our handler.
"""

from __future__ import annotations

import logging
import logging.config
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import wraps
from time import time_ns
from typing import Any, Final

from opentelemetry import baggage
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import get_current
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from otel_kit import catalogue
from otel_kit.guard import guard
from otel_kit.settings import Settings
from otel_kit.telemetry.context import log_fields
from otel_kit.telemetry.export import GuardedLogExporter, Outage, factories
from otel_kit.telemetry.redaction import Redactor

#: Loggers of servers that configure themselves not to propagate; their errors are the application's errors.
_DETACHED_LOGGERS: Final = ("uvicorn", "gunicorn.error", "hypercorn.error")
_STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: `logging` level to OpenTelemetry severity (specification, "Logs Data Model", appendix B).
_SEVERITIES: Final = (
    (logging.CRITICAL, SeverityNumber.FATAL, "FATAL"),
    (logging.ERROR, SeverityNumber.ERROR, "ERROR"),
    (logging.WARNING, SeverityNumber.WARN, "WARN"),
    (logging.INFO, SeverityNumber.INFO, "INFO"),
    (logging.DEBUG, SeverityNumber.DEBUG, "DEBUG"),
    (logging.NOTSET, SeverityNumber.TRACE, "TRACE"),
)


def build(
    settings: Settings, resource: Resource, redactor: Redactor, outage: Outage
) -> tuple[LoggerProvider, RecordFields]:
    """A provider that exports as the settings say, and the processor that completes its records."""
    fields = RecordFields(resource)
    provider = LoggerProvider(resource=fields.app_resource, shutdown_on_exit=False)
    provider.add_log_record_processor(fields)
    for factory in factories(settings, "logs", settings.logs_exporter):
        provider.add_log_record_processor(BatchLogRecordProcessor(GuardedLogExporter(factory, redactor, outage)))
    return provider, fields


class RecordFields(LogRecordProcessor):
    """Completes a record: category, stream, request and user from baggage, fields of the running job; and counts it."""

    def __init__(self, resource: Resource) -> None:
        # Loki cuts its streams by resource attributes, and keeps audit records for longer: a resource of their own.
        self.app_resource = resource.merge(Resource({catalogue.STREAM: "app"}))
        self._audit_fields = Resource({catalogue.STREAM: "audit"})
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

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
                self._counts[record.severity_text or "INFO", category] += 1

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
        self._lock = threading.Lock()
        self._counts.clear()

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002
        """Nothing is held."""
        return True


def _category(record: LogRecord) -> str:
    number = record.severity_number
    return "errors" if number is not None and number.value >= SeverityNumber.ERROR.value else "app"


class Handler(logging.Handler):
    """Turns a `logging` record into an OpenTelemetry one; the batch processor does the rest on its own thread.

    Args:
        provider: Where records go.
        level: Records below it are left out.
        code_attributes: Whether file, line and function come along.
    """

    # opentelemetry-python#3858: what the SDK logs while it takes a record must not come back in.
    _emitting: ContextVar[bool] = ContextVar("otel_kit_emitting", default=False)

    def __init__(self, provider: LoggerProvider, level: int = logging.NOTSET, *, code_attributes: bool = False) -> None:
        # The level is judged here: what `logging` keeps from a handler this one could not hand on to stderr.
        super().__init__()
        self._threshold = level
        self._provider = provider
        self._code_attributes = code_attributes

    def emit(self, record: logging.LogRecord) -> None:
        if self._emitting.get():
            return
        if record.levelno >= self._threshold:
            token = self._emitting.set(True)
            try:
                with guard("exporting a log record"):
                    self._provider.get_logger(record.name).emit(self._translate(record))
            finally:
                self._emitting.reset(token)
        last_resort = logging.lastResort
        if logging.root.handlers == [self] and last_resort is not None and record.levelno >= last_resort.level:
            self._stand_in_for_nobody(record, last_resort)

    def _stand_in_for_nobody(self, record: logging.LogRecord, last_resort: logging.Handler) -> None:
        # Without us this record would have found no handler, and Python would have printed it.
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return
            logger = logger.parent if logger.propagate else None
        last_resort.handle(record)

    def _translate(self, record: logging.LogRecord) -> LogRecord:
        number, text = next((number, text) for level, number, text in _SEVERITIES if record.levelno >= level)
        hidden = _hidden_fields.get(record.name.partition(".")[0], frozenset())
        attributes = {
            name: _plain(value)
            for name, value in vars(record).items()
            if name not in _STANDARD_FIELDS and name not in hidden
        }
        event_name = attributes.pop("event.name", None)
        if self._code_attributes:
            attributes["code.file.path"] = record.pathname
            attributes["code.line.number"] = record.lineno
            attributes["code.function.name"] = record.funcName
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, trace = record.exc_info
            attributes["exception.type"] = _qualified(kind)
            attributes["exception.message"] = str(error)
            attributes["exception.stacktrace"] = "".join(traceback.format_exception(kind, error, trace))
        return LogRecord(
            timestamp=int(record.created * 1e9),
            observed_timestamp=time_ns(),
            context=get_current(),
            severity_text=text,
            severity_number=number,
            body=record.getMessage(),
            attributes=attributes,
            event_name=str(event_name) if event_name else None,
        )

    def flush(self) -> None:
        """Nothing: `logging.shutdown` calls it under the logging lock, where waiting for the network would be a deadlock."""


def _qualified(kind: type[BaseException]) -> str:
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _plain(value: Any) -> Any:
    """What an attribute can hold; anything else as its text, now, while the object is as it was when it was logged."""
    if value is None or isinstance(value, (str, bool, int, float, bytes)):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return str(value)


class Attachment:
    """Keeps the handler where records pass, whatever the application configures afterwards."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._undo: list[Callable[[], None]] = []
        self._loggers: list[logging.Logger] = []

    def attach(self, logger: logging.Logger | None = None) -> None:
        """Add the handler to a logger (the root if left out) unless it is there."""
        logger = logger or logging.getLogger()
        if self._handler not in logger.handlers:
            logger.addHandler(self._handler)
            self._loggers.append(logger)

    def install(self) -> None:
        """Attach, and stay attached through basicConfig, dictConfig and fileConfig."""
        self._attach_all()
        for module, name in ((logging, "basicConfig"), (logging.config, "dictConfig"), (logging.config, "fileConfig")):
            self._wrap(module, name)

    def remove(self) -> None:
        """Take everything back."""
        for undo in self._undo:
            undo()
        for logger in self._loggers:
            logger.removeHandler(self._handler)
        self._undo.clear()
        self._loggers.clear()

    def _attach_all(self) -> None:
        self.attach()
        for name in _DETACHED_LOGGERS:
            logger = logging.getLogger(name)
            if not logger.propagate:
                self.attach(logger)

    def _wrap(self, module: Any, name: str) -> None:
        original = getattr(module, name)

        @wraps(original)
        def configured(*args: Any, **kwargs: Any) -> Any:
            # Out of the way meanwhile: basicConfig does nothing when the root has a handler, dictConfig closes what it finds.
            logging.getLogger().removeHandler(self._handler)
            try:
                return original(*args, **kwargs)
            finally:
                self._attach_all()
                _enable_ours()

        setattr(module, name, configured)
        self._undo.append(lambda: setattr(module, name, original))


def _enable_ours() -> None:
    # dictConfig switches off every logger that it does not name, and with ours the warning that nothing gets through.
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "otel_kit":
            logging.getLogger(name).disabled = False


_attachment: Attachment | None = None
_hidden_fields: dict[str, frozenset[str]] = {}


def install(handler: Handler) -> Callable[[], None]:
    """Put the handler in place; the function returned takes it away."""
    global _attachment
    _attachment = attachment = Attachment(handler)
    attachment.install()
    return attachment.remove


def attach(logger: logging.Logger) -> None:
    """Make sure that a logger which a framework has just set up passes its records to us; nothing if we are not on."""
    if _attachment is not None:
        _attachment.attach(logger)


def hide_field(logger: str, name: str) -> None:
    """Leave an extra field of a library's own log records out, by the first part of the logger's name."""
    _hidden_fields[logger] = _hidden_fields.get(logger, frozenset()) | {name}
