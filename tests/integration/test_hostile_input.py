"""What applications do not mean to send, and send: nothing is raised, the caller waits briefly, it arrives cut and says so."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_kit.telemetry.limits import MAX_ITEMS, MAX_KEY, MAX_TEXT
from otel_kit.testing import LogRecord, OtlpSink

#: Milliseconds on the caller's thread that no input may take. Those measured on a quiet machine are a tenth of it or less.
BOUND = 2_000
CUT = re.compile(r"\.\.\. \[cut \d+ characters\] \.\.\.")

PRELUDE = '''
import json, logging, sys, time
import otel_kit
from opentelemetry import context, metrics, trace

logging.getLogger().addHandler(logging.NullHandler())
logging.getLogger().setLevel(logging.INFO)
otel_kit.configure("hostile", instrument=False)
took = {}


def do(name, act):
    began = time.thread_time()
    act()  # whatever is raised ends the program
    took[name] = round((time.thread_time() - began) * 1000, 2)


def nested(kind):
    value = kind([("k", 1)]) if kind is dict else [1]
    for _ in range(10_000):
        value = {"k": value} if kind is dict else [value]
    return value


class Silent:
    """Raises, whatever it is asked."""

    def _raise(self, *_):
        raise RuntimeError("no")

    __str__ = __repr__ = __len__ = __iter__ = __bool__ = __eq__ = __format__ = __getattr__ = _raise
    __hash__ = None


class SilentText(str):
    __str__ = __repr__ = __len__ = __iter__ = __eq__ = Silent._raise
    __hash__ = str.__hash__


class SilentList(list):
    __len__ = __iter__ = __repr__ = __getitem__ = Silent._raise


class SilentDict(dict):
    __len__ = __iter__ = __repr__ = items = keys = Silent._raise


recursive_list, recursive_dict = [1], {"n": 1}
recursive_list.append(recursive_list)
recursive_dict["me"] = recursive_dict
shared = ["text"]
for _ in range(12):
    shared = [shared] * 20

HOSTILE = {
    "5 MB text": "word " * 1_000_000,
    "5 MB text without a seam": "x" * 5_000_000,
    "5 MB of surrogates": "\\ud800" * 1_000_000,
    "surrogate": "a\\ud800b",
    "nan": float("nan"),
    "infinity": float("inf"),
    "10,000 bits": 1 << 10_000,
    "1,000,000 bits": 1 << 1_000_000,
    "64 bits": 1 << 64,
    "recursive list": recursive_list,
    "recursive dict": recursive_dict,
    "shared list": shared,
    "silent": Silent(),
    "silent text": SilentText("abc"),
    "silent list": SilentList([1]),
    "silent dict": SilentDict(a=1),
    "generator": (n for n in range(10)),
    "bytes": b"\\xff\\x00abc",
    "5 MB bytes": b"x" * 5_000_000,
    "deep list": nested(list),
    "deep dict": nested(dict),
    "long list": list(range(1_000_000)),
    "long dict": {str(n): n for n in range(100_000)},
    "set": {1, 2, 3},
    "mixed": [1, "a", None, 2.5, b"x", {"k": [Silent()]}],
    "odd keys": {1: 2, None: 3, (1, 2): 4, "": 5, b"k": 6, "k\\ud800": 7},
    "class": Silent,
    "none": None,
}
many = {f"k{n}": n for n in range(100_000)}
long_key = "key." * 25_000
'''

END = """
print(json.dumps(took))
"""


class RawSink(OtlpSink):
    """A receiver that keeps the requests for spans as they came, too: with what the SDK counts as dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[ExportTraceServiceRequest] = []

    def _take(self, message: Any) -> None:
        if isinstance(message, ExportTraceServiceRequest):
            self.requests.append(message)
        super()._take(message)

    def raw(self, name: str) -> Any:
        """A span as it came."""
        for request in list(self.requests):
            for group in request.resource_spans:
                for scope in group.scope_spans:
                    for span in scope.spans:
                        if span.name == name:
                            return span
        raise AssertionError(f"{name!r} has not arrived")


@pytest.fixture
def sink() -> Iterator[RawSink]:
    with RawSink() as receiver:
        yield receiver


Run = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(programs: Any, tmp_path: Path) -> Run:
    """Runs a program to its end, which must be a quiet one, and every step of which must be quick."""

    def run_it(body: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "program.py").write_text(PRELUDE + body + END)
        ended: subprocess.CompletedProcess[str] = programs.run(
            "import runpy; runpy.run_path('program.py')", timeout=120
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert "otel-kit:" not in ended.stderr, ended.stderr[-3000:]
        took = json.loads(ended.stdout.splitlines()[-1])
        (tmp_path / "took.json").write_text(ended.stdout)
        assert {name: spent for name, spent in took.items() if spent > BOUND} == {}
        return ended

    return run_it


def _size(value: Any) -> int:
    return len(json.dumps(value, default=repr))


def _by_name(found: list[LogRecord]) -> dict[Any, LogRecord]:
    return {record.attributes.get("name_of_it", record.body): record for record in found}


def test_hostile_log_records(run: Run, sink: RawSink) -> None:
    run("""
log = logging.getLogger("app")
for name, value in HOSTILE.items():
    do(f"extra: {name}", lambda: log.info("extra", extra={"it": value, "name_of_it": f"extra: {name}"}))
    if value is shared:
        continue  # its str() takes Python for ever, with us or without
    do(f"argument: {name}", lambda: log.info("%s%s", value, "", extra={"name_of_it": f"argument: {name}"}))
    do(f"message: {name}", lambda: log.info(value, extra={"name_of_it": f"message: {name}"}))
    log.info("neighbour", extra={"n": name})
do("100,000 extras", lambda: log.info("100,000 extras", extra=many))
do("long key", lambda: log.info("long key", extra={long_key: 1, "k\\ud800": 2, 5: 6, "": 7}))
for name in ("a\\nb", "a\\ud800b", "n" * 100_000):
    do(f"logger {name[:10]!r}", lambda: logging.getLogger(name).info("odd logger"))
    log.info("neighbour", extra={"n": name[:10]})
for mistake in (("%d items", "x"), ("%s %s", 1), ("%(a)s", 5), ("%", 1), ("%z", 1), ("none", 1, 2), ("%s", Silent())):
    do(f"mistake {mistake[0]}", lambda: log.info(*mistake, extra={"name_of_it": f"mistake {mistake[0]}"}))
changing = ["before"]
log.info("args that change: %s", changing)
changing.append("after")
for garbage in ({"levelno": None}, {"name": None}, {"name": [1]}, {"created": None}, {"created": float("nan")},
                {"exc_info": True}, {"exc_info": (None, None, None)}, {"exc_info": 5}, {"args": None, "msg": None}):
    record = logging.makeLogRecord({"levelno": 20, "levelname": "INFO", "msg": "garbage", **garbage})
    if isinstance(record.levelno, int):
        do(f"garbage {garbage}", lambda: log.handle(record))
log.info("last")
""")
    sink.wait_for(lambda s: any(record.body == "last" for record in s.logs))
    records = sink.logs
    assert sum(record.body == "neighbour" for record in records) == 27 + 3
    found = _by_name(records)
    hostile = [name for name in found if str(name).startswith(("extra: ", "argument: ", "message: "))]
    assert len(hostile) == 28 + 27 * 2
    assert max(_size(found[name].attributes) + _size(found[name].body) for name in hostile) < 8 * MAX_TEXT
    for how in ("argument", "message"):
        for text in ("5 MB text", "5 MB text without a seam"):
            body = found[f"{how}: {text}"].body
            assert len(body) <= MAX_TEXT
            assert CUT.search(body)

    def extra(name: str) -> Any:
        return found[f"extra: {name}"].attributes.get("it")

    assert CUT.search(extra("5 MB text"))
    assert extra("surrogate") == "a?b"
    assert extra("nan") != extra("nan")
    assert extra("64 bits") == str(1 << 64)
    assert extra("10,000 bits") == str(1 << 10_000)
    assert extra("1,000,000 bits").startswith("0x1000")
    assert "whose str() raises RuntimeError" in extra("silent")
    assert extra("silent text") == "abc"
    assert extra("silent list") == "[unreadable SilentList]"
    assert extra("silent dict") == "[unreadable SilentDict]"
    assert extra("generator").startswith("<generator object")
    assert extra("bytes") == b"\xff\x00abc"
    assert extra("5 MB bytes").endswith(b"... [cut 4967280 bytes] ...")
    assert "too deep" in str(extra("deep list"))
    assert "too deep" in str(extra("deep dict"))
    assert "too deep" in str(extra("recursive list"))
    assert extra("long list")[-1] == f"... [cut {1_000_001 - MAX_ITEMS} items] ..."
    assert extra("long dict")["..."] == f"[cut {100_001 - MAX_ITEMS} items]"
    assert extra("odd keys") == {"1": 2, "None": 3, "(1, 2)": 4, "": 5, "b'k'": 6, "k?": 7} or "1" in extra("odd keys")
    assert "whose str() raises" in found["message: silent"].body
    assert "whose str() raises" in found["argument: silent"].body
    assert found["mistake %d items"].body == "%d items ('x',)"
    assert any(record.body == "args that change: ['before']" for record in records)
    wide = next(record for record in records if record.body == "100,000 extras")
    assert 100 <= len(wide.attributes) <= MAX_ITEMS
    keys = next(record for record in records if record.body == "long key").attributes
    assert any(len(key) <= MAX_KEY and CUT.search(key) for key in keys)
    assert (keys["k?"], keys["5"]) == (2, 6)
    scopes = {record.scope for record in records if record.body == "odd logger"}
    assert {"a\nb", "a?b"} < scopes
    assert max(map(len, scopes)) <= MAX_KEY
    assert sum(record.body == "garbage" for record in records) == 7


def test_hostile_exceptions_in_log_records(run: Run, sink: RawSink) -> None:
    run("""
log = logging.getLogger("app")
def again(n): return again(n + 1)
def there(n): return back(n + 1)
def back(n): return there(n + 1)
class BadError(Exception):
    __str__ = __repr__ = Silent._raise
def chain(length):
    error = None
    for n in range(length):
        nextone = ValueError(str(n)); nextone.__cause__ = error; error = nextone
    return error
def deep_group(depth):
    error = ValueError("leaf")
    for _ in range(depth):
        error = ExceptionGroup("deep", [error])
    return error
def raising(error):
    def act():
        raise error
    return act
def noted():
    error = ValueError("noted"); error.__notes__ = [Silent(), "n" * 5_000_000]; raise error
circle = ValueError("circle"); circle.__cause__ = KeyError("other"); circle.__cause__.__cause__ = circle
for name, act in {
    "recursion": lambda: again(0), "mutual recursion": lambda: there(0), "silent": raising(BadError()),
    "chain": raising(chain(2_000)), "deep group": raising(deep_group(900)), "circle": raising(circle),
    "wide group": raising(ExceptionGroup("wide", [ValueError(str(n)) for n in range(10_000)])),
    "5 MB": raising(ValueError("x" * 5_000_000)), "noted": noted, "surrogate": raising(ValueError("\\udc80")),
}.items():
    try:
        act()
    except Exception:
        do(name, lambda: log.exception("failed", extra={"name_of_it": name}))
        log.info("neighbour")
""")
    sink.wait_for(lambda s: sum(record.body == "neighbour" for record in s.logs) == 10)
    found = {record.attributes.get("name_of_it"): record.attributes for record in sink.logs if record.body == "failed"}
    assert len(found) == 10
    for attributes in found.values():
        assert len(attributes["exception.stacktrace"]) <= MAX_TEXT
        assert len(attributes["exception.message"]) <= MAX_TEXT
    assert found["recursion"]["exception.type"] == "RecursionError"
    assert re.match(r"\.\.\. \[cut \d+ frames\] \.\.\.", found["mutual recursion"]["exception.stacktrace"])
    assert found["silent"]["exception.message"] == "<BadError, whose str() raises RuntimeError>"
    assert CUT.search(found["5 MB"]["exception.message"])
    assert found["surrogate"]["exception.message"] == "?"


def test_hostile_spans(run: Run, sink: RawSink) -> None:
    run("""
from opentelemetry.trace import Link, SpanContext, Status, StatusCode
tracer = trace.get_tracer("app")
def filled(name, act):
    with tracer.start_as_current_span(name) as span:
        do(name, lambda: act(span))
    tracer.start_span("neighbour").end()
for name, value in HOSTILE.items():
    filled(f"attribute: {name}", lambda span: span.set_attribute("it", value))
    filled(f"attributes: {name}", lambda span: span.set_attributes({"it": value, "n": 1}))
    filled(f"event: {name}", lambda span: span.add_event("e", {"it": value}))
    filled(f"link: {name}", lambda span: span.add_link(SpanContext(1, 1, False), {"it": value}))
    do(f"start: {name}", lambda: tracer.start_span(f"start: {name}", attributes={"it": value}).end())
filled("100,000 attributes", lambda span: span.set_attributes(many))
filled("100,000 attributes one by one", lambda span: [span.set_attribute(k, v) for k, v in many.items()])
filled("10,000 events", lambda span: [span.add_event("e", {"n": n}) for n in range(10_000)])
filled("10,000 links", lambda span: [span.add_link(SpanContext(1 + n, 1, False)) for n in range(10_000)])
do("10,000 links at start", lambda: tracer.start_span(
    "10,000 links at start", links=[Link(SpanContext(1 + n, 1, False)) for n in range(10_000)]).end())
filled("100,000 attributes of an event", lambda span: span.add_event("e", many))
filled("long key", lambda span: span.set_attributes({long_key: 1, "k\\ud800": 2, 5: 3, "": 4}))
filled("status", lambda span: span.set_status(Status(StatusCode.ERROR, "s\\ud800" * 1_000_000)))
filled("name", lambda span: span.update_name("n\\ud800" * 1_000_000))
filled("event name", lambda span: span.add_event("n\\ud800" * 1_000_000))
do("end before start", lambda: tracer.start_span("end before start", start_time=-5).end(1 << 70))
do("odd times", lambda: tracer.start_span("odd times", start_time=1.5).end())
do("scope", lambda: trace.get_tracer("s\\ud800" * 1000, "1\\ud800").start_span("odd scope").end())
do("many scopes", lambda: [trace.get_tracer(f"s\\ud800{n}").start_span("many scopes").end() for n in range(50)])
tracer.start_span("last").end()
""")
    sink.wait_for(lambda s: any(span.name == "last" for span in s.spans))
    spans = sink.spans
    assert sum(span.name == "neighbour" for span in spans) == 28 * 4 + 9
    names = {span.name for span in spans}
    kinds = ("attribute: ", "attributes: ", "event: ", "link: ", "start: ")
    assert sum(name.startswith(kinds) for name in names) == 28 * 5
    found = {span.name: span for span in spans}
    for span in spans:
        assert _size(span.attributes) + _size(span.events) < 8 * MAX_TEXT, span.name
    for kind in ("attribute", "attributes", "start"):

        def it(name: str, kind: str = kind) -> Any:
            return found[f"{kind}: {name}"].attributes.get("it")

        assert CUT.search(it("5 MB text"))
        assert it("surrogate") == "a?b"
        assert it("64 bits") == str(1 << 64)
        assert it("10,000 bits") == str(1 << 10_000)
        assert it("silent text") == "abc"
        assert "silent" in kind or "RuntimeError" in str(it("silent")) or "unreadable" in str(it("silent"))
        assert it("mixed")[:2] == [1, "a"]
        assert it("long list")[-1] == f"... [cut {1_000_001 - MAX_ITEMS} items] ..."
        assert it("long dict")["..."] == f"[cut {100_001 - MAX_ITEMS} items]"
        assert "too deep" in str(it("deep list")) or "redacted" in str(it("deep list"))
    for name in ("100,000 attributes", "100,000 attributes one by one"):
        raw = sink.raw(name)
        assert len(raw.attributes) == 128
        assert raw.dropped_attributes_count == 100_000 - 128
    events, links = sink.raw("10,000 events"), sink.raw("10,000 links")
    assert (len(events.events), events.dropped_events_count) == (128, 9_872)
    assert (len(links.links), links.dropped_links_count) == (128, 9_872)
    assert sink.raw("10,000 links at start").dropped_links_count == 9_872
    [event] = sink.raw("100,000 attributes of an event").events
    assert event.dropped_attributes_count == 100_000 - 128
    keys = found["long key"].attributes
    assert any(len(key) <= MAX_KEY and CUT.search(key) for key in keys)
    assert keys["k?"] == 2
    assert CUT.search(found["status"].status_message)
    assert any(name.startswith("n?n?") and CUT.search(name) for name in names)
    assert {"odd scope", "end before start", "odd times"} <= names
    assert sum(span.name == "many scopes" for span in spans) == 50


def test_hostile_metrics(run: Run, sink: RawSink) -> None:
    run("""
meter = metrics.get_meter("app")
counter, histogram = meter.create_counter("hits"), meter.create_histogram("seconds")
for name, value in HOSTILE.items():
    do(name, lambda: counter.add(1, {"it": value, "name_of_it": name}))
    do(f"histogram {name}", lambda: histogram.record(1, {"it": value, "name_of_it": name}))
for amount in (float("nan"), float("inf"), -1, 1 << 70, True):
    do(f"amount {amount}", lambda: counter.add(amount, {"name_of_it": f"amount {amount}"}))
    do(f"recorded {amount}", lambda: histogram.record(amount, {"name_of_it": f"amount {amount}"}))
do("description", lambda: meter.create_counter("described", description="d\\ud800" * 100_000).add(1))
do("long key", lambda: counter.add(1, {long_key: 1, "k\\ud800": 2, "name_of_it": "long key"}))
def broken(_options):
    yield metrics.Observation(Silent(), {"a": 1})
meter.create_observable_gauge("broken", [broken, lambda _options: 5, lambda _options: [Silent()]])
meter.create_counter("neighbour").add(7)
""")
    sink.wait_for(lambda s: any(point.name == "neighbour" and point.value == 7 for point in s.points))
    hits = {point.attributes.get("name_of_it"): point for point in sink.points if point.name == "hits"}
    assert len([name for name in hits if name and not name.startswith(("amount", "long key"))]) == 28
    assert hits["amount 1180591620717411303424"].value == 2**70
    assert CUT.search(str(hits["5 MB text"].attributes["it"]))
    assert hits["surrogate"].attributes["it"] == "a?b"
    assert hits["long key"].attributes["k?"] == 2
    assert max(_size(point.attributes) for point in hits.values()) < 8 * MAX_TEXT
    assert any(point.name == "described" for point in sink.points)


def test_hostile_headers_and_job_carriers(run: Run, sink: RawSink) -> None:
    run("""
from opentelemetry import baggage, propagate
from otel_kit.jobs import propagation
from otel_kit.jobs.model import Job, Outcome, Trigger
from otel_kit.jobs.recorder import get_recorder
HEADERS = {
    "1 MB": "a" * 1_000_000,
    "1 MB of entries": ",".join(f"k{n}=v{n}" for n in range(100_000)),
    "1 MB of commas": "," * 1_000_000,
    "1 MB of percents": "k=" + "%" * 1_000_000,
    "invalid percents": "a=%zz,b=%,c=%ff,d=%c0%80,e=%00",
    "control characters": "a=\\x00\\n\\r,b\\x7f=1",
    "surrogates": "k\\ud800=v\\udfff",
    "semicolons": "k=v" + ";p=1" * 250_000,
    "equals": "=" * 1_000_000,
    "empty": "",
    "not a text": 5,
    "bytes": b"a=b",
    "none": None,
    "list": ["a=b", None, 5],
    "dict": {"a": "b"},
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "traceparent with more": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-" + "x" * 1_000_000,
    "user": "user.id=root,request.id=" + "x" * 100_000,
}
tracer = trace.get_tracer("app")
for name, value in HEADERS.items():
    for field in ("baggage", "traceparent", "tracestate"):
        headers = {"traceparent": HEADERS["traceparent"], field: value}
        def serve():
            found = propagate.extract(headers)
            token = context.attach(found)
            try:
                with tracer.start_as_current_span("serve", attributes={"name_of_it": f"{field}: {name}"}):
                    logging.getLogger("app").info("served")
                    propagate.inject({})
                    propagation.inject({}, Trigger.API)
            finally:
                context.detach(token)
        if isinstance(value, (str, list)) :
            do(f"{field}: {name}", serve)
        def work():
            headers.update({"otel-kit-previous-attempt": value})
            job = Job("job", "id", "queue", "celery", attempt=2, carrier=headers)
            get_recorder().start(job).finish(Outcome.SUCCESS)
        do(f"job {field}: {name}", work)
tracer.start_span("last").end()
""")
    sink.wait_for(lambda s: any(span.name == "last" for span in s.spans))
    served = [span for span in sink.spans if span.name == "serve"]
    assert len(served) == 14 * 3
    assert sum(span.name == "process queue" for span in sink.spans) == 18 * 3


def test_hundreds_of_long_lines_do_not_fill_the_memory(programs: Any, sink: RawSink) -> None:
    sink.stop()
    ended = programs.run(
        """
import logging, resource, otel_kit
from opentelemetry import trace
otel_kit.configure("hostile", instrument=False)
logging.getLogger().addHandler(logging.NullHandler())
log, tracer = logging.getLogger("app"), trace.get_tracer("app")
def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
log.error("%s", "x" * 5_000_000)
before = held()
for n in range(300):
    text = f"{n}" + "x" * 5_000_000
    log.error(text, extra={"it": text})
    with tracer.start_as_current_span(text) as span:
        span.set_attribute("it", text)
        span.add_event("e", {"it": text})
print((held() - before) >> 20)
""",
        timeout=120,
        OTEL_KIT_SHUTDOWN_TIMEOUT="0.5",
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(ended.stdout) < 300  # megabytes; more than four gigabytes went by
