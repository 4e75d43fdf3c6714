"""How processes end: at a signal, at whatever moment it comes, and as children of multiprocessing."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from otel_kit.testing import OtlpSink
from otel_kit.testing.faults import Accept, Hang
from tests.integration.conftest import Programs, eventually

#: Nothing but the end of the process sends spans and logs.
ONLY_AT_THE_END = {"OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_BLRP_SCHEDULE_DELAY": "60000"}

# Longer than the metric interval: a child that is younger keeps its metrics to itself.
JOB = """
import logging, os, time
import otel_kit
from opentelemetry import trace

def job(configure=False):
    if configure:
        otel_kit.configure("shop")
    with trace.get_tracer("shop").start_as_current_span("in child"):
        logging.getLogger("shop").error("said in child")
        time.sleep(0.75)
    print(os.getpid(), flush=True)
"""


def assert_delivered(sink: OtlpSink, pid: int) -> None:
    """The process has sent its span and its log record once, and said goodbye."""
    parents = {point.resource.get("process.pid") for point in sink.points} - {None, pid}
    assert [span.name for span in sink.spans if span.resource["process.pid"] == pid] == ["in child"]
    assert [record.body for record in sink.logs if record.resource["process.pid"] == pid] == ["said in child"]
    up = [
        point.value
        for point in sink.points
        # A forked child's series has no process id: its successor will go on with it.
        if point.name == "otel_kit.process.up" and point.resource.get("process.pid") not in parents
    ]
    assert up[-1] == 0


def test_sigterm_ends_the_process_at_whatever_line_of_a_flush_it_comes(programs: Programs) -> None:
    ran = programs.run(
        """
import os, signal, sys, time
import otel_kit
otel_kit.configure("shop", instrument=False, shutdown_timeout=3)

def flush_and_be_told_to_end_at(step):
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        seen += 1
        if seen == step:
            sys.settrace(None)
            os.kill(os.getpid(), signal.SIGTERM)
            return None
        return trace

    sys.settrace(trace)
    otel_kit.flush(10)
    sys.settrace(None)
    os._exit(0)

def end_of(child):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"

step, end = 0, -signal.SIGTERM
while end == -signal.SIGTERM:
    step += 1
    child = os.fork()
    if child == 0:
        flush_and_be_told_to_end_at(step)
    end = end_of(child)
print(step, end)
""",
        timeout=150,
    )
    step, end = ran.stdout.split()
    assert end == "0", f"at step {step}; {ran.stderr}"
    assert int(step) > 30, "the signal came nowhere"


def test_sigterm_in_the_middle_of_flushes_ends_a_process_and_loses_nothing(programs: Programs, sink: OtlpSink) -> None:
    programs.write(
        "busy",
        """
import otel_kit
from opentelemetry import trace
otel_kit.configure("shop")
count = 0
while True:
    count += 1
    trace.get_tracer("shop").start_span("tick").end()
    print(count, flush=True)
    otel_kit.flush()
""",
    )
    process = programs.start(sys.executable, "busy.py", **ONLY_AT_THE_END)
    eventually(lambda: len(programs.output(process).split()) > 5)
    assert programs.stop(process) == -signal.SIGTERM
    counted = int(programs.output(process).split()[-1])
    assert len(sink.spans) in (counted, counted + 1)  # it may have been stopped just before it could print
    assert [point.value for point in sink.points if point.name == "otel_kit.process.up"][-1] == 0


def test_sigterm_while_the_application_shuts_down_waits_for_that_and_a_second_one_does_not_cut_it_short(
    programs: Programs,
) -> None:
    ran = programs.run(
        """
import os, signal, threading, time
import otel_kit
from otel_kit.lifecycle import lifecycle
otel_kit.configure("shop", instrument=False, shutdown_timeout=20)
begun = threading.Event()

def slow(timeout):
    begun.set()
    time.sleep(1.5)
    print("flushed", flush=True)

def terminate():
    begun.wait(20)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)

lifecycle.on_flush("slow", slow)
threading.Thread(target=terminate, daemon=True).start()
otel_kit.shutdown(20)
while True:
    time.sleep(1)
"""
    )
    assert (ran.returncode, ran.stdout) == (-signal.SIGTERM, "flushed\n"), ran.stderr


@pytest.mark.parametrize("way_out", ["end", "sigterm", "sigterm again and again"])
def test_exit_work_that_hangs_costs_the_end_no_more_than_the_budget(programs: Programs, way_out: str) -> None:
    ran = programs.run(
        """
import os, signal, threading, time
import otel_kit
from otel_kit.lifecycle import lifecycle
otel_kit.configure("shop", instrument=False, shutdown_timeout=1)
lifecycle.on_close(lambda: time.sleep(50))

def terminate_again_and_again():
    for _ in range(100):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)

print(time.time(), flush=True)
"""
        + {
            "end": "",
            "sigterm": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(50)",
            "sigterm again and again": "threading.Thread(target=terminate_again_and_again).start(); time.sleep(50)",
        }[way_out]
    )
    took = time.time() - float(ran.stdout)
    assert ran.returncode == (0 if way_out == "end" else -signal.SIGTERM)
    assert took < 10, f"{took:.1f} s"


@pytest.mark.parametrize("way", ["Process", "ProcessPoolExecutor", "Pool"])
def test_a_forked_child_of_multiprocessing_delivers_what_it_has_and_says_goodbye(
    programs: Programs, sink: OtlpSink, way: str
) -> None:
    start = {
        "Process": "child = context.Process(target=work.job); child.start(); child.join()",
        "ProcessPoolExecutor": """
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(1, mp_context=context) as executor:
    executor.submit(work.job).result()
""",
        # Its children are ended by SIGTERM.
        "Pool": """
with context.Pool(1) as pool:
    pool.apply(work.job)
""",
    }[way]
    programs.write("work", JOB)
    # Loaded only after configure(), which must not matter.
    ran = programs.run(
        "import otel_kit, work; otel_kit.configure('shop')\n"
        "import multiprocessing; context = multiprocessing.get_context('fork')\n" + start,
        **ONLY_AT_THE_END,
    )
    assert ran.returncode == 0, ran.stderr
    assert_delivered(sink, int(ran.stdout))


@pytest.mark.parametrize("where", ["in the target", "in the main module"])
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_fresh_child_of_multiprocessing_that_configures_itself_delivers_and_says_goodbye(
    programs: Programs, sink: OtlpSink, method: str, where: str
) -> None:
    programs.write("work", JOB)
    programs.write(
        "main",
        f"""
import multiprocessing
import work
if {where == "in the main module"}:
    work.otel_kit.configure("shop")
if __name__ == "__main__":
    child = multiprocessing.get_context({method!r}).Process(target=work.job, args=({where == "in the target"},))
    child.start()
    child.join()
    assert child.exitcode == 0
""",
    )
    process = programs.start(sys.executable, "main.py", **ONLY_AT_THE_END)
    assert process.wait(60) == 0, programs.output(process)
    assert_delivered(sink, int(programs.output(process).split()[-1]))


def test_a_child_of_billiard_that_has_said_goodbye_does_not_say_it_again(programs: Programs, sink: OtlpSink) -> None:
    programs.write("work", JOB)
    ran = programs.run(
        """
import multiprocessing.util
import billiard, otel_kit, work
from otel_kit.lifecycle import lifecycle
otel_kit.configure("shop", instrument=False)
lifecycle.on_flush("counted", lambda timeout: print(work.os.getpid(), "flushed", flush=True))

def job():
    work.job()
    lifecycle.close(5)

child = billiard.get_context("fork").Process(target=job)
child.start()
child.join()
""",
        **ONLY_AT_THE_END,
    )
    assert ran.returncode == 0, ran.stderr
    pid = ran.stdout.split()[0]
    assert ran.stdout.splitlines().count(f"{pid} flushed") == 1
    assert_delivered(sink, int(pid))


def test_a_child_of_multiprocessing_whose_collector_is_dead_ends_within_the_budget(programs: Programs) -> None:
    programs.write("work", JOB)
    ran = programs.run(
        """
import multiprocessing, time
import otel_kit, work
otel_kit.configure("shop", shutdown_timeout=1)
child = multiprocessing.get_context("fork").Process(target=work.job)
child.start()
began = time.monotonic()
child.join()
print(child.exitcode, time.monotonic() - began)
""",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        **ONLY_AT_THE_END,
    )
    _pid, exitcode, took = ran.stdout.split()
    assert exitcode == "0", ran.stderr
    assert float(took) < 8  # a second of work, a second of budget, and room for a busy machine


@pytest.mark.parametrize("fault", ["nobody listens", "nobody answers"])
def test_sigterm_with_thousands_of_spans_and_no_receiver_ends_in_time_and_the_disk_has_the_rest(
    fault: str, programs: Programs, sink: OtlpSink
) -> None:
    if fault == "nobody listens":
        sink.pause()
    else:
        sink.script.set(Hang())
    program = """
import time, otel_kit
from opentelemetry import trace
otel_kit.configure("shop", instrument=False)
for n in range(3000):
    trace.get_tracer("shop").start_span("waiting", attributes={"n": n}).end()
print("queued", flush=True)
time.sleep(60)
"""
    program_environment = {
        **ONLY_AT_THE_END,
        "OTEL_BSP_MAX_QUEUE_SIZE": "4000",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4000",
    }
    programs.write("program", program)
    process = programs.start(sys.executable, "program.py", **program_environment)
    eventually(lambda: "queued" in programs.output(process))
    began = time.monotonic()
    process.terminate()
    assert process.wait(20) == -signal.SIGTERM
    took = time.monotonic() - began
    print(f"\n{fault}: gone after {took:.2f} s")
    assert took < 5.5
    kept = [file.name.split(".") for file in (programs.directory / "spool").rglob("*.otlp")]
    assert sum(int(items) for _, items, signal_, *_ in kept if signal_ == "traces") == 3000

    if fault == "nobody listens":
        sink.resume()
    else:
        sink.script.set(Accept())
    ran = programs.run("import otel_kit, time; otel_kit.configure('shop', instrument=False); time.sleep(2)")
    assert ran.returncode == 0
    assert sorted(span.attributes["n"] for span in sink.spans) == list(range(3000))
