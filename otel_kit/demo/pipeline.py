"""The example system of examples/pipeline as a set of running processes."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from otel_kit.demo.processes import PartFailedError, Processes, Program
from otel_kit.demo.redis_server import configuration, find_redis

#: Import name -> what to install.
_NEEDS: Final = {
    "aiosqlite": "aiosqlite",
    "celery": "celery",
    "fastapi": "fastapi",
    "greenlet": "sqlalchemy[asyncio]",
    "httpx": "httpx",
    "redis": "redis",
    "sqlalchemy": "sqlalchemy",
    "uvicorn": "uvicorn",
}
_START_TIMEOUT: Final = 60.0
_WORKERS: Final = 2

Report = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Service:
    """How one service of the example is started and how it shows that it is ready.

    Attributes:
        command: Arguments for Python; ``{port}`` and ``{state}`` are filled in.
        variable: Environment variable under which the others find it, or ``""`` when it listens nowhere.
        ready: Text in its log that says it is ready; services that listen are asked at ``/health`` instead.
        what: What it is, for people.
    """

    name: str
    command: tuple[str, ...]
    what: str
    variable: str = ""
    ready: str = ""


_CELERY: Final = ("-m", "celery", "-A")
_UVICORN: Final = ("--host", "127.0.0.1", "--port", "{port}", "--log-level", "info")
STORE: Final = Service("store", ("-m", "uvicorn", "dependency:app", *_UVICORN), "FastAPI", variable="DEPENDENCY_URL")
GATEWAY: Final = Service(
    "gateway", ("-m", "uvicorn", "gateway:app", *_UVICORN), "FastAPI, async SQLAlchemy", variable="GATEWAY_URL"
)
WORKER: Final = Service(
    "worker",
    # Alone in its cluster, it need not listen for others: that saves a second at its start.
    (
        *_CELERY,
        "worker",
        "worker",
        "--loglevel",
        "info",
        "--concurrency",
        str(_WORKERS),
        "--without-gossip",
        "--without-mingle",
    ),
    f"Celery, {_WORKERS} processes",
    ready=" ready.",
)
SCHEDULER: Final = Service(
    "scheduler",
    (*_CELERY, "scheduler", "beat", "--loglevel", "info", "--schedule", "{state}/beat"),
    "Celery beat",
    ready="beat: Starting",
)
BOT: Final = Service("bot", ("bot.py",), "httpx")
SERVICES: Final = (BOT, GATEWAY, WORKER, SCHEDULER, STORE)


def example_folder() -> Path:
    """Where examples/pipeline is: inside the installed package, or in the repository beside it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_assets" / "examples" / "pipeline", package.parent / "examples" / "pipeline"):
        if (folder / "gateway.py").is_file():
            return folder
    raise PartFailedError("example", f"examples/pipeline is neither in {package / '_assets'} nor in {package.parent}")


def missing_packages() -> list[str]:
    """What the example needs and is not installed."""
    return [install for module, install in _NEEDS.items() if importlib.util.find_spec(module) is None]


@dataclass
class Pipeline:
    """The running example.

    Attributes:
        processes: Its programs.
        secrets: What was planted in URLs and must not be found in telemetry, by what it is.
        sent: How many messages of each kind the load driver has sent, once `load` has returned.
    """

    processes: Processes
    secrets: Mapping[str, str]
    bot: Program
    folder: Path
    environment: Mapping[str, str]
    sent: dict[str, int] = field(default_factory=dict)

    def say(self, message: str) -> None:
        """Give the bot one message: ``CHAT TEXT``."""
        assert self.bot.process.stdin is not None
        self.bot.process.stdin.write(message.encode() + b"\n")
        self.bot.process.stdin.flush()

    def load(self, *options: str) -> Program:
        """Start the load driver with these options; its messages go to the bot."""
        return self.processes.start(
            "load",
            [sys.executable, "load.py", *options],
            environment=self.environment,
            folder=self.folder,
            stdout=self.bot.process.stdin,
            may_end=True,
        )

    def finish_load(self, load: Program, timeout: float) -> dict[str, int]:
        """Wait for the load driver's end and return what it sent, by kind.

        Raises:
            PartFailedError: It, or a service, failed; or `timeout` seconds are over.
        """
        self.processes.wait_until(load, load.has_ended, what="finish", timeout=timeout)
        self.processes.check()
        self.sent = json.loads(self.processes.tail(load, 1)[0])
        return self.sent


@contextmanager
def running_pipeline(
    otlp: str, report: Report, *, telemetry: Mapping[str, str] | None = None, redis: str | None = None
) -> Iterator[Pipeline]:
    """Start the example and stop it again.

    Args:
        otlp: OTLP/HTTP endpoint for every service.
        report: Called with a part and what became of it, as things start.
        telemetry: Further OTEL_* variables for the services.
        redis: Redis server to use, see `find_redis`.

    Raises:
        PartFailedError: Names the part that did not start, with the end of its log.
    """
    absent = missing_packages()
    if absent:
        raise PartFailedError("packages", f"{', '.join(absent)} not installed: pip install 'otel-kit[demo]'")
    folder = example_folder()
    program = find_redis(redis)
    planted = {"Redis password": secrets.token_hex(12), "store token": secrets.token_hex(12)}
    ports = {name: _free_port() for name in ("redis", STORE.name, GATEWAY.name)}
    with tempfile.TemporaryDirectory(prefix="otel-kit-demo-") as state:
        environment = _environment(otlp, ports, planted, Path(state)) | dict(telemetry or {})
        with Processes(Path(state), secrets=tuple(planted.values())) as processes:
            version = _start_redis(processes, program, ports["redis"], planted["Redis password"], Path(state))
            report("redis", f"{version} on port {ports['redis']}")

            def start(service: Service) -> Program:
                values = {"port": ports.get(service.name, 0), "state": state}
                command = [sys.executable, *(part.format(**values) for part in service.command)]
                stdin = subprocess.PIPE if service is BOT else subprocess.DEVNULL
                return processes.start(service.name, command, environment=environment, folder=folder, stdin=stdin)

            running = {service: start(service) for service in (GATEWAY, STORE, WORKER, BOT)}
            for service in (GATEWAY, STORE, WORKER, SCHEDULER, BOT):
                _wait_ready(processes, service, running[service], environment)
                if service is GATEWAY:
                    # Its jobs need the tables, which the gateway makes.
                    running[SCHEDULER] = start(SCHEDULER)
                where = f" on port {ports[service.name]}" if service.name in ports else ""
                report(service.name, service.what + where)
            yield Pipeline(processes, planted, running[BOT], folder, environment)


def _environment(otlp: str, ports: Mapping[str, int], planted: Mapping[str, str], state: Path) -> dict[str, str]:
    # What the user's shell says about telemetry is meant for other programs.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return inherited | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp,
        "OTEL_KIT_SPOOL_DIR": str(state / "spool"),
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=demo",
        "REDIS_URL": f"redis://:{planted['Redis password']}@127.0.0.1:{ports['redis']}/0",
        "DATABASE_URL": f"sqlite:///{state / 'notes.db'}",
        "GATEWAY_URL": f"http://127.0.0.1:{ports['gateway']}",
        "DEPENDENCY_URL": f"http://127.0.0.1:{ports['store']}",
        "STORE_TOKEN": planted["store token"],
        "NIGHT_SECONDS": "2",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "PYTHONUNBUFFERED": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start_redis(processes: Processes, program: Path, port: int, password: str, state: Path) -> str:
    from redis import Redis
    from redis.exceptions import RedisError

    # By a file that only we can read: an argument would show the password to everybody on the machine.
    settings = state / "redis.conf"
    settings.touch(mode=0o600)
    settings.write_text(configuration(port, password, state))
    running = processes.start("redis", [str(program), str(settings)], environment=os.environ, folder=state)
    version = ""

    def answers() -> bool:
        nonlocal version
        try:
            with Redis(host="127.0.0.1", port=port, password=password, socket_timeout=1) as client:
                version = str(client.info("server")["redis_version"])
        except RedisError:
            return False
        return True

    processes.wait_until(running, answers, what="answer", timeout=10)
    return version


def _wait_ready(processes: Processes, service: Service, running: Program, environment: Mapping[str, str]) -> None:
    if service.variable:
        url = environment[service.variable] + "/health"
        processes.wait_until(running, lambda: _answers(url), what="answer at /health", timeout=_START_TIMEOUT)
    elif service.ready:
        processes.wait_until(
            running,
            lambda: service.ready in running.log.read_text(errors="replace"),
            what=f"say {service.ready.strip()!r}",
            timeout=_START_TIMEOUT,
        )


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
