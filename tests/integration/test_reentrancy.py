"""Code that runs in the middle of ours, on the same thread: finalizers, signal handlers, logging handlers."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from otel_kit.testing import OtlpSink

PRELUDE = """
import gc, logging, os, signal, sys, threading, time
import faulthandler
faulthandler.dump_traceback_later(15, exit=True)  # a deadlock tells where it is
import otel_kit
from opentelemetry import metrics, trace
from otel_kit.guard import faults
logging.getLogger().setLevel(logging.INFO)
logging.getLogger().addHandler(logging.NullHandler())
otel_kit.configure("reentrant", instrument=False)
log, tracer, meter = logging.getLogger("app"), trace.get_tracer("app"), metrics.get_meter("app")
counter, histogram = meter.create_counter("hits"), meter.create_histogram("seconds")
"""


def _ends_well(programs: Any, body: str, **environment: str) -> str:
    ended: subprocess.CompletedProcess[str] = programs.run(PRELUDE + body, timeout=60, **environment)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout


#: What an object's finalizer, or a signal handler, may do.
WORK = {
    "logs": 'logging.getLogger(f"late.{n % 7}").warning("late %d", n, extra={"n": n})',
    "audits": 'otel_kit.audit("late", n=n)',
    "spans": 'tracer.start_span("late", attributes={"n": n}).end()',
    "flushes": "otel_kit.flush(0.01)",
    "jobs": (
        "from otel_kit.jobs.recorder import get_recorder; from otel_kit.jobs.model import Job, Outcome; "
        'get_recorder().start(Job(f"late-{n % 5}", "id", "q", "redis")).finish(Outcome.SUCCESS)'
    ),
    "tallies": (
        "from otel_kit.jobs.recorder import get_recorder; from otel_kit.jobs.model import Job, Outcome; "
        'job = Job(f"late-{n % 5}", "id", f"q{n % 3}", "redis"); tally = get_recorder().tally; tally.received(job); '
        "tally.started(job, 1.0); tally.finished(job, Outcome.SUCCESS, 1.0)"
    ),
}


@pytest.mark.parametrize("work", WORK)
def test_finalizers_that_run_in_the_middle_of_our_code_do_not_hang_it(programs: Any, sink: OtlpSink, work: str) -> None:
    out = _ends_well(
        programs,
        f"""
ran, busy = 0, False
def late(n):
    {WORK[work]}
class Garbage:
    def __init__(self, n):
        self.n, self.me = n, self
    def __del__(self):
        global ran, busy
        if busy:
            return
        busy = True
        ran += 1
        late(self.n)
        busy = False
from otel_kit.jobs.recorder import get_recorder
from otel_kit.jobs.model import Job, Outcome, Trigger
late(0)
gc.set_threshold(1, 1, 1)
began = time.monotonic()
n = 0
while time.monotonic() - began < 1:
    n += 1
    Garbage(n)
    log.info("now %d", n, extra={{"n": n, "it": [n]}})
    Garbage(n)
    otel_kit.audit("now", n=n)
    Garbage(n)
    with tracer.start_as_current_span("now", attributes={{"n": n}}) as span:
        Garbage(n)
        span.add_event("now", {{"n": n}})
    Garbage(n)
    job = Job(f"job-{{n % 5}}", "id", f"q{{n}}", "redis")
    with get_recorder().publishing(job) as publication:
        publication.inject({{}})
    get_recorder().tally.received(job)
    get_recorder().tally.started(job, 1.0)
    get_recorder().tally.finished(job, Outcome.SUCCESS, 1.0)
    get_recorder().start(job).finish(Outcome.FAILURE, ValueError(n))
    logging.getLogger(f"new.{{n}}").info("a new logger")
gc.set_threshold(700, 10, 10)
assert ran > 20, ran
assert not [cause for cause in faults() if not cause.startswith("running ")], faults()
log.info("last")
assert otel_kit.flush(10)
print(n, ran)
""",
        OTEL_BLRP_MAX_QUEUE_SIZE="100000",
        OTEL_BSP_MAX_QUEUE_SIZE="100000",
    )
    assert int(out.split()[0]) > 5
    sink.wait_for(lambda s: any(record.body == "last" for record in s.logs))


@pytest.mark.parametrize("work", WORK)
def test_signal_handlers_that_run_in_the_middle_of_our_code_do_not_hang_it(
    programs: Any, sink: OtlpSink, work: str
) -> None:
    out = _ends_well(
        programs,
        f"""
n = ran = 0
busy = False
def late(*_):
    global ran, busy
    if busy:
        return  # as long as one runs, the next would be nested in it
    busy = True
    ran += 1
    {WORK[work]}
    busy = False
late()
signal.signal(signal.SIGALRM, late)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
from otel_kit.jobs.recorder import get_recorder
from otel_kit.jobs.model import Job, Outcome
began = time.monotonic()
while time.monotonic() - began < 1:
    n += 1
    log.info("now %d", n, extra={{"n": n}})
    otel_kit.audit("now", n=n)
    with tracer.start_as_current_span("now", attributes={{"n": n}}) as span:
        span.add_event("now", {{"n": n}})
    job = Job(f"job-{{n % 5}}", "id", f"q{{n % 9}}", "redis")
    get_recorder().tally.received(job)
    get_recorder().tally.started(job, 1.0)
    get_recorder().tally.finished(job, Outcome.SUCCESS, 1.0)
    get_recorder().start(job).finish(Outcome.SUCCESS)
    logging.getLogger(f"new.{{n}}").info("a new logger")
signal.setitimer(signal.ITIMER_REAL, 0)
assert not [cause for cause in faults() if not cause.startswith("running ")], faults()
log.info("last")
assert otel_kit.flush(10)
print(n, ran)
""",
        OTEL_BLRP_MAX_QUEUE_SIZE="1000000",
        OTEL_BSP_MAX_QUEUE_SIZE="1000000",
    )
    assert int(out.split()[1]) > 20
    sink.wait_for(lambda s: any(record.body == "last" for record in s.logs))


def test_logging_that_logs_flushes_and_is_reconfigured_goes_on(programs: Any, sink: OtlpSink) -> None:
    _ends_well(
        programs,
        """
import logging.config
class Chatty(logging.Handler):
    def emit(self, record):
        if record.name == "app":
            logging.getLogger("chatty").info("about %s", record.getMessage())
            trace.get_current_span().add_event("logged", {"n": 1})
            trace.get_current_span().set_attribute("logged", "yes")
class Flushing(logging.Handler):
    def emit(self, record):
        otel_kit.flush(2)
log.addHandler(Chatty())
log.addHandler(Flushing())
CONFIG = {"version": 1, "disable_existing_loggers": True, "root": {"level": "INFO", "handlers": []}}
def reconfigure():
    for _ in range(50):
        logging.config.dictConfig(CONFIG)  # holds logging's own lock
def flush():
    for _ in range(20):
        otel_kit.flush(2)
threads = [threading.Thread(target=work) for work in (reconfigure, flush, reconfigure, flush)]
for thread in threads:
    thread.start()
with tracer.start_as_current_span("span") as span:
    for n in range(20):
        log.disabled = False
        log.info("line %d", n)
    # Above the span's limit of attributes: the SDK would warn with the span's lock held, and Chatty wants that lock.
    attributes_logger = logging.getLogger("opentelemetry.attributes")
    attributes_logger.disabled = False
    attributes_logger.addHandler(Chatty())
    span.set_attributes({f"k{n}": n for n in range(200)})
    span.set_attribute("odd", object())
for thread in threads:
    thread.join(20)
    assert not thread.is_alive()
logging.getLogger("app").disabled = False
log.info("last")
assert otel_kit.flush(10)
""",
    )
    sink.wait_for(lambda s: any(record.body == "last" for record in s.logs))
    bodies = [record.body for record in sink.logs]
    assert sum(body.startswith("line ") for body in bodies) == 20


def test_objects_whose_text_logs_and_flushes_do_not_hang(programs: Any, sink: OtlpSink) -> None:
    _ends_well(
        programs,
        """
class Talkative:
    def __str__(self):
        log.info("asked for my text")
        span = trace.get_current_span()
        otel_kit.flush(0.5)
        tracer.start_span("inside").end()
        counter.add(1, {"from": "str"})
        return "talkative"
with tracer.start_as_current_span("outer") as span:
    log.info("%s", Talkative(), extra={"it": Talkative()})
    otel_kit.audit("done", it=Talkative())
    counter.add(1, {"it": Talkative()})
tracer.start_span("last", attributes={"it": Talkative()}).end()
""",
    )
    sink.wait_for(lambda s: any(span.name == "last" for span in s.spans))
    assert any(record.body == "talkative" and record.attributes["it"] == "talkative" for record in sink.logs)


def test_a_thread_of_ours_that_logs_does_not_feed_itself(programs: Any, sink: OtlpSink) -> None:
    sink.stop()
    out = _ends_well(
        programs,
        """
class Seen(logging.Handler):
    def emit(self, record):
        seen.append((threading.current_thread().name, record.name))
seen = []
logging.getLogger().addHandler(Seen())
logging.getLogger().setLevel(logging.DEBUG)
log.info("one")
otel_kit.flush(2)
time.sleep(1)
otel_kit.flush(2)
print(len(seen))
""",
        OTEL_KIT_SHUTDOWN_TIMEOUT="0.5",
    )
    assert int(out) < 200
