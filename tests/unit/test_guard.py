"""The guard: swallows, counts, says it once; shows it under pytest."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from otel_kit.guard import faults, guard


def test_under_pytest_a_fault_is_raised_and_counted() -> None:
    with pytest.raises(ZeroDivisionError), guard("a test of the guard"):
        _ = 1 / 0
    assert faults()["a test of the guard"] == 1


def test_in_an_application_a_fault_is_swallowed_and_said_once() -> None:
    script = """
from otel_kit.guard import faults, guard

@guard("as a decorator")
def fails():
    raise RuntimeError("a fault of ours")

for _ in range(3):
    fails()
print("the application goes on", faults())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout == "the application goes on {'as a decorator': 3}\n"
    assert ran.stderr.count("as a decorator failed") == 1
    assert "RuntimeError: a fault of ours" in ran.stderr


@pytest.mark.parametrize("started_by_a_test", [False, True])
def test_a_program_is_in_production_whether_it_imports_pytest_or_a_test_started_it(started_by_a_test: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_VERSION"}
    script = """
from otel_kit.guard import guard
with guard("in production"):
    raise RuntimeError("a fault of ours")
print("went on")
"""
    if started_by_a_test:
        environment["PYTEST_VERSION"] = pytest.__version__
    else:
        script = "import pytest" + script
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "went on\n"), ran.stderr


def test_a_fault_in_a_signal_handler_that_interrupts_the_counting_of_another_is_counted() -> None:
    script = """
import os, signal, sys, threading
from otel_kit import guard as module
from otel_kit.guard import faults, guard

def handler(*_arguments):
    with guard("in the handler"):
        raise RuntimeError("a fault of ours")

signal.signal(signal.SIGUSR1, handler)
with module._lock:
    os.kill(os.getpid(), signal.SIGUSR1)

# Held by another thread at the time of a fork, it is free in the child.
held, release = threading.Event(), threading.Event()

def hold():
    with module._lock:
        held.set()
        release.wait(30)

threading.Thread(target=hold, daemon=True).start()
held.wait(30)
child = os.fork()
if child == 0:
    print(faults(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=15, check=True)
    assert ran.stdout == "{'in the handler': 1}\n"


def test_what_ends_the_process_passes() -> None:
    with pytest.raises(KeyboardInterrupt), guard("an interrupt"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("module", ["billiard.exceptions", "rq.timeouts"])
def test_a_time_limit_that_strikes_in_our_code_reaches_the_application(module: str) -> None:
    script = f"""
import importlib
from otel_kit.guard import faults, guard
module = importlib.import_module("{module}")
error = getattr(module, "SoftTimeLimitExceeded", None) or module.JobTimeoutException
try:
    with guard("publishing"):
        raise error("time is up")
except error:
    print("reached", faults())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout == "reached {}\n"
