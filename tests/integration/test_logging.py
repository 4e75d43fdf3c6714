"""Log records: nothing is taken from the application, whatever it configures and when."""

from __future__ import annotations

import pytest

from otel_kit.testing import OtlpSink
from tests.integration.conftest import Programs

START = "import logging, logging.config, sys, otel_kit\notel_kit.configure('shop')\nlog = logging.getLogger('shop')\n"


def test_an_application_without_logging_keeps_its_warnings_on_stderr(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(START + "log.warning('visible'); log.info('below the level')")
    assert ran.stderr == "visible\n"
    assert [record.body for record in sink.logs] == ["visible"]


BASIC = "logging.basicConfig(level='INFO', stream=sys.stdout, format='app: %(message)s')"
DICT = """logging.config.dictConfig({
    'version': 1,
    'disable_existing_loggers': False,
    'formatters': {'f': {'format': 'app: %(message)s'}},
    'handlers': {'h': {'class': 'logging.StreamHandler', 'stream': 'ext://sys.stdout', 'formatter': 'f'}},
    'root': {'handlers': ['h'], 'level': 'INFO'},
})"""


@pytest.mark.parametrize("setup", [BASIC, DICT], ids=["basicConfig", "dictConfig"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_configuration_before_or_after_ours_is_kept_and_so_are_we(
    programs: Programs, sink: OtlpSink, setup: str, order: str
) -> None:
    before = "import logging, logging.config, sys\n" + setup + "\n" + START
    after = START + setup + "\n"
    ran = programs.run((before if order == "before" else after) + "log.info('hello')")
    assert ran.stdout == "app: hello\n", ran.stderr
    assert ran.stderr == ""
    assert [(record.body, record.severity) for record in sink.logs] == [("hello", "INFO")]


@pytest.mark.parametrize(
    "replaced",
    [
        "from logging import basicConfig\n{start}basicConfig(level='INFO', stream=sys.stdout, format='app: %(message)s')",
        "from logging.config import dictConfig\n{start}{dict}",
        "{start}logging.root.handlers.clear(); logging.root.setLevel('INFO')\n"
        "handler = logging.StreamHandler(sys.stdout); handler.setFormatter(logging.Formatter('app: %(message)s'))\n"
        "logging.root.handlers = [handler]",
        "{start}log.propagate = False; log.setLevel('INFO')\n"
        "handler = logging.StreamHandler(sys.stdout); handler.setFormatter(logging.Formatter('app: %(message)s'))\n"
        "log.addHandler(handler)",
    ],
    ids=["basicConfig imported before", "dictConfig imported before", "handlers replaced", "a logger on its own"],
)
def test_however_an_application_sets_its_logging_up_both_see_every_record(
    programs: Programs, sink: OtlpSink, replaced: str
) -> None:
    script = replaced.format(start=START, dict=DICT.replace("logging.config.dictConfig", "dictConfig"))
    ran = programs.run(script + "\nlog.info('hello')")
    assert (ran.stdout, ran.stderr) == ("app: hello\n", "")
    assert [record.body for record in sink.logs] == ["hello"]


AWKWARD = {
    "an extra whose str() raises": "log.error('odd', extra={'x': Bad()})",
    "arguments that do not fit": "log.error('%d items', 'x')",
    "a cyclic extra": "cyclic = {}; cyclic['self'] = cyclic; log.error('odd', extra={'x': cyclic})",
    "a message that is no text": "log.error(Bad())",
    "an exception whose str() raises": "\ntry:\n    raise BadError\nexcept BadError:\n    log.exception('odd')",
    "a field of five megabytes": "log.error('odd', extra={'x': 'y' * 5_000_000})",
    "a body of five megabytes": "log.error('y' * 5_000_000)",
    "surrogates": "log.error('odd \\udc80')",
}


@pytest.mark.parametrize("statement", AWKWARD.values(), ids=AWKWARD)
def test_an_awkward_record_arrives_and_is_of_bearable_size(programs: Programs, sink: OtlpSink, statement: str) -> None:
    ran = programs.run(
        START
        + """
class Bad:
    def __str__(self):
        raise RuntimeError("no text")
class BadError(Exception):
    __str__ = Bad.__str__
logging.raiseExceptions = False
"""
        + statement
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    [record] = sink.logs
    assert record.severity == "ERROR"
    assert len(repr(record)) < 80_000


def test_exporting_does_not_feed_itself_with_debug_records(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(
        START
        + """
logging.basicConfig(level="DEBUG", stream=sys.stdout)
log.info("one")
for _ in range(10):
    otel_kit.flush(1)
"""
    )
    assert ran.returncode == 0
    assert [record.body for record in sink.logs if record.scope != "asyncio"] == ["one"]


def test_a_record_carries_logger_extra_exception_and_trace(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(
        START
        + """
from opentelemetry import baggage, context, trace
context.attach(baggage.set_baggage("request.id", "r-1"))
with trace.get_tracer("t").start_as_current_span("s"):
    try:
        raise KeyError("missing")
    except KeyError:
        log.exception("failed %d", 3, extra={"order": 7, "tags": {"a"}, "thing": object, "event.name": "order.failed"})
"""
    )
    assert ran.returncode == 0
    [record], [span] = sink.logs, sink.spans
    assert (record.scope, record.body, record.event_name) == ("shop", "failed 3", "order.failed")
    assert (record.trace_id, record.span_id) == (span.trace_id, span.span_id)
    attributes = record.attributes
    assert "KeyError: 'missing'" in attributes.pop("exception.stacktrace")
    assert attributes == {
        "order": 7,
        "tags": ["a"],
        "thing": "<class 'object'>",
        "exception.type": "KeyError",
        "exception.message": "'missing'",
        "request.id": "r-1",
        "log.category": "errors",
    }


def test_records_are_counted_by_severity_and_category(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(START + "log.warning('a'); log.warning('b'); log.error('c')")
    assert ran.returncode == 0
    counted = {
        (p.attributes["severity"], p.attributes["log.category"]): p.value
        for p in sink.points
        if p.name == "otel_kit.log.records"
    }
    assert {key: number for key, number in counted.items() if number} == {("WARN", "app"): 2, ("ERROR", "errors"): 1}
    # There from the start, so that the first error is an increase.
    assert counted["FATAL", "errors"] == 0


def test_categories_of_ones_own_stay_on_the_record_and_off_the_metric(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(START + "for n in range(50): log.error('x', extra={'log.category': f'mine-{n}'})")
    assert ran.returncode == 0
    assert {record.attributes["log.category"] for record in sink.logs} == {f"mine-{n}" for n in range(50)}
    [counted] = {p.value for p in sink.points if p.attributes.get("severity") == "ERROR" and p.value}
    assert counted == 50


def test_what_the_sdk_logs_about_a_record_does_not_come_back_in(programs: Programs, sink: OtlpSink) -> None:
    # A value that no attribute can hold makes the SDK log a warning while it takes the record.
    ran = programs.run(START + "log.warning('odd', extra={'a': {1: {2: {3}}}, 'b': [1, 'x', None]})")
    assert ran.returncode == 0, ran.stderr
    assert [record.body for record in sink.logs] == ["odd"]


def test_logs_can_be_left_to_the_application(programs: Programs, sink: OtlpSink) -> None:
    assert programs.run(START + "log.error('x')", OTEL_PYTHON_LOG_AUTO_INSTRUMENTATION="false").stderr == "x\n"
    assert programs.run(START + "log.warning('y')", OTEL_PYTHON_LOG_HANDLER_LEVEL="error").stderr == "y\n"
    assert sink.logs == []


def test_after_shutdown_logging_is_as_it_was(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(
        """
import logging, logging.config
before = (logging.Logger.callHandlers, list(logging.root.handlers))
import otel_kit
otel_kit.configure("shop")
assert logging.Logger.callHandlers is not before[0]
assert otel_kit.shutdown() is True
assert otel_kit.shutdown() is True
assert (logging.Logger.callHandlers, logging.root.handlers) == before
logging.getLogger().warning("late")
"""
    )
    assert (ran.returncode, ran.stderr) == (0, "late\n")
