"""The guard: swallows, counts, says it once; shows it under pytest."""

from __future__ import annotations

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


def test_what_ends_the_process_passes() -> None:
    with pytest.raises(KeyboardInterrupt), guard("an interrupt"):
        raise KeyboardInterrupt
