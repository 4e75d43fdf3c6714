"""Forks in the middle of everything: no child hangs on a lock of its parent's, and what each has to say arrives."""

from __future__ import annotations

from collections import Counter

import pytest

from otel_kit.testing import OtlpSink
from tests.integration.conftest import Programs

FORKS = 500

# Two in three of the hammer's turns make instruments and loggers, flush, or log an error: whatever takes a lock.
PROGRAM = """
import logging, os, signal, sys, threading, time
import otel_kit
otel_kit.configure("shop", instrument=False, shutdown_timeout=20)
from opentelemetry import metrics, trace

tracer, meter, log = trace.get_tracer("shop"), metrics.get_meter("shop"), logging.getLogger("shop")
children = meter.create_counter("children")
stop = threading.Event()

def hammer():
    turn, count, took = 0, meter.create_counter("turns"), meter.create_histogram("took")
    while not stop.is_set():
        turn += 1
        with tracer.start_as_current_span("turn", attributes={"turn": turn}) as span:
            span.add_event("hit")
            log.warning("turn %d", turn)
            count.add(1, {"last digit": turn % 10})
            took.record(turn % 7)
        if turn % 3 == 1:
            meter.create_counter(f"made.{turn % 50}").add(1)
            logging.getLogger(f"shop.{turn % 50}").error("one of many")
        if turn % 3 == 2:
            trace.get_tracer(f"shop.{turn % 50}").start_span("another").end()
        if turn % 50 == 0:
            otel_kit.flush(0.01)
        time.sleep(0.001)  # the machine is the children's too

def child(n):
    signal.alarm(60)  # one that hangs is killed, and counts as lost
    with tracer.start_as_current_span("in child", attributes={"n": n}):
        log.warning("in child %d", n)
    children.add(1)
    if n % 2:
        sys.exit(0)
    os._exit(0 if otel_kit.flush(15) else 3)

def reap():
    pid, status = os.waitpid(-1, 0)
    ended[os.waitstatus_to_exitcode(status)] = ended.get(os.waitstatus_to_exitcode(status), 0) + 1

ended, alive = {}, 0
threading.Thread(target=hammer, daemon=True).start()
for n in range(int(os.environ["FORKS"])):
    if os.fork() == 0:
        child(n)
    alive += 1
    if alive == 4:
        reap()
        alive -= 1
for _ in range(alive):
    reap()
stop.set()
otel_kit.shutdown(20)
print(ended)
"""


@pytest.mark.timeout(300)
def test_five_hundred_forks_beside_a_busy_thread_lose_nothing(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(
        PROGRAM,
        timeout=270,
        FORKS=str(FORKS),
        OTEL_KIT_SPOOL_DIR=str(programs.directory / "spool"),
        # The hammer's own fill the queue and are dropped; the children's each have a queue to themselves.
        OTEL_BSP_MAX_QUEUE_SIZE="512",
        OTEL_BLRP_MAX_QUEUE_SIZE="512",
        OTEL_BSP_SCHEDULE_DELAY="1000",
        OTEL_BLRP_SCHEDULE_DELAY="1000",
    )
    assert ran.stdout.splitlines()[-1:] == [f"{{0: {FORKS}}}"], ran.stdout[-500:] + ran.stderr[-3000:]
    spans = Counter(span.attributes["n"] for span in sink.spans if span.name == "in child")
    records = Counter(record.body for record in sink.logs if str(record.body).startswith("in child"))
    assert spans == Counter(range(FORKS))
    assert records == Counter(f"in child {n}" for n in range(FORKS))
    latest: dict[str, float] = {}
    for point in sink.points:
        if point.name == "children":
            instance = point.resource["service.instance.id"]
            latest[instance] = max(latest.get(instance, 0), point.value)
    assert sum(latest.values()) == FORKS
