"""Forks at the worst moments: while the parent sends for the first time, and while another of its threads holds a lock.

A child has only the thread that forked, and every lock as it was: one that another thread held stays held for ever. Module
locks are among them, and `importlib` has no cure for a fork: whoever imports in a child what a thread of the parent was just
importing never comes back.
"""

from __future__ import annotations

from collections import Counter

import pytest

from otel_kit.testing import OtlpSink
from otel_kit.testing.faults import Behaviour, CutReading, Slow, Status
from tests.integration.conftest import Programs

CHILDREN = 24

# Imports beside the main thread take their time, as on a busy machine with a cold disk: a moment becomes a tenth of a second.
START = """
import importlib.abc, logging, os, signal, sys, threading, time
import otel_kit

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if threading.current_thread() is not threading.main_thread():
            imported.append(f"{name} by {threading.current_thread().name}")
            time.sleep(0.1)
        return None

imported = []
otel_kit.configure("race", instrument=False)
sys.meta_path.insert(0, Slow())
from opentelemetry import metrics, trace
tracer, log = trace.get_tracer("race"), logging.getLogger("race")
runs = metrics.get_meter("race").create_counter("runs")

def work(who):
    with tracer.start_as_current_span(who):
        log.warning(who)
    runs.add(1)

def code_of(child):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""

FORKING = f"""{START}
work("parent")
children = []
for n in range({CHILDREN}):
    time.sleep(0.004)
    child = os.fork()
    if child == 0:
        work(f"child {{n}}")
        otel_kit.flush(15)  # what it cannot send it leaves on disk, and its parent sends that
        os._exit(3 if imported else 0)
    children.append(child)
codes = [code_of(child) for child in children]
otel_kit.shutdown(10)
print(codes, imported)
"""


def test_children_forked_in_the_middle_of_the_first_export_deliver_everything(
    programs: Programs, sink: OtlpSink
) -> None:
    # Forks come before the first request, while it is made, and while its answer is waited for.
    sink.script.set(Slow(0.05), times=3)
    ran = programs.run(
        FORKING,
        OTEL_BSP_SCHEDULE_DELAY="20",
        OTEL_BLRP_SCHEDULE_DELAY="20",
        OTEL_METRIC_EXPORT_INTERVAL="60",
    )

    assert ran.stdout.splitlines()[-1:] == [f"{[0] * CHILDREN} []"], ran.stdout[-2000:] + ran.stderr[-4000:]
    everyone = Counter(["parent", *(f"child {n}" for n in range(CHILDREN))])
    assert Counter(span.name for span in sink.spans) == everyone
    assert Counter(record.body for record in sink.logs if record.scope == "race") == everyone


SENDING = f"""{START}
enough = threading.Thread(target=sys.stdin.read)
enough.start()
while enough.is_alive():
    work("again")
    otel_kit.flush(0.2)
    enough.join(0.1)
otel_kit.shutdown(5)
print(imported)
"""
PAGE = b"<html><title>overloaded</title></html>"
TROUBLES: tuple[Behaviour, ...] = (
    Status(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT", body=PAGE, kind="text/html"),
    Status(400, message="not like this"),
    Status(413),
    Status(429, retry_after=0.1),
    CutReading(),
)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_nothing_is_imported_on_the_way_whatever_the_receiver_says(
    programs: Programs, sink: OtlpSink, protocol: str
) -> None:
    assert sink.grpc_endpoint is not None
    for trouble in TROUBLES:
        sink.script.set(trouble, signal="logs", times=1)
    programs.write("sending", SENDING)
    sending = programs.converse(
        "sending.py",
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_ENDPOINT=sink.grpc_endpoint if protocol == "grpc" else sink.endpoint,
    )
    sink.wait_for(lambda s: [record for record in s.logs if record.scope == "race"], timeout=30)

    met = [arrival.behaviour for arrival in sink.script.arrivals if arrival.signal == "logs"]
    assert all(trouble in met for trouble in TROUBLES)
    assert sending.communicate(timeout=15)[0] == "[]\n", programs.output(sending)


# Whoever asks for a tracer or a meter looks it up by its name, and holds the provider's lock while the name is hashed.
HOLDING = f"""{START}
inside, forked = threading.Event(), threading.Event()

class Name(str):
    def __hash__(self):
        if threading.current_thread() is holder and not forked.is_set():
            inside.set()
            forked.wait(10)
        return str.__hash__(self)

holder = threading.Thread(target=lambda: {{ask}}(Name("another")))
holder.start()
assert inside.wait(10)
child = os.fork()
if child == 0:
    forked.set()
    work("child")
    os._exit(0 if otel_kit.flush(5) else 3)
code = code_of(child)
forked.set()
holder.join()
print(code)
"""


@pytest.mark.parametrize("ask", ["trace.get_tracer", "metrics.get_meter"])
def test_a_child_does_not_wait_for_a_lock_that_another_thread_of_its_parent_held(
    programs: Programs, sink: OtlpSink, ask: str
) -> None:
    ran = programs.run(HOLDING.replace("{ask}", ask))

    assert ran.stdout.splitlines()[-1:] == ["0"], ran.stdout[-2000:] + ran.stderr[-4000:]
    assert [span.name for span in sink.spans] == ["child"]
