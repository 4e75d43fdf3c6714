"""Processes that fork, recycle and end: each request and each task is there exactly once, by Prometheus's own increase()."""

from __future__ import annotations

import functools
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from otel_kit.stack.query import StackQuery, poll
from otel_kit.telemetry.slots import Slots
from tests.stack import otlp
from tests.stack.conftest import Stack

BIN = Path(sys.executable).parent

# One after the other, each for a single export: the shortest-lived children there are.
SUCCESSION = """
import os, sys, uuid
from pathlib import Path
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from otel_kit.telemetry.slots import Slots
from tests.stack.otlp import Sender
service, endpoint, identity, order, directory = sys.argv[1:]
requests = [Path(directory, f"request-{number:02}") for number in range(20)]

def live(request):
    resource = {"service.name": service, "process.pid": os.getpid()}
    resource["service.instance.id"] = "the same" if identity == "the same id" else str(uuid.uuid4())
    slot = Slots(Path(directory)).take(resource) if identity == "a slot" else None
    reader = InMemoryMetricReader()
    MeterProvider([reader], Resource(resource)).get_meter("shop").create_counter("sold").add(5)
    collected = encode_metrics(reader.get_metrics_data())
    request.write_bytes((slot.amend(collected) if slot else collected).SerializeToString())

for request in requests:
    child = os.fork()
    if child == 0:
        try:
            live(request)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("a child has failed")
for request in requests if order == "in order" else reversed(requests):
    Sender(endpoint).send(ExportMetricsServiceRequest.FromString(request.read_bytes()))
"""

WORK = """
import logging, os
import otel_kit
otel_kit.configure()
from opentelemetry import metrics, trace
handled = metrics.get_meter("shop").create_counter("handled")

def work(n):
    with trace.get_tracer("shop").start_as_current_span("handle", attributes={"n": n}):
        logging.getLogger("shop").warning("line %d", n)
        handled.add(1)
    # The truth to compare with: a client whose worker leaves before it has answered asks again, and is served twice.
    file = os.open("handled.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{n} ".encode())
    os.close(file)
"""

WSGI = """
from work import handled, work
handled.add(7)  # in the main process, before it forks

def app(environ, start_response):
    n = environ["PATH_INFO"].strip("/")
    if n != "ready":
        work(int(n))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
"""

ASGI = """
import os
from work import handled, work
if "gunicorn" in os.environ["SERVER"]:
    handled.add(7)
from fastapi import FastAPI
app = FastAPI()

@app.get("/ready")
async def ready():
    return "ok"

@app.get("/{n}")
async def handle(n: int):
    work(n)
    return "ok"
"""

FAMILY = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from work import handled, work

if __name__ == "__main__":
    method, way = sys.argv[1:]
    context = multiprocessing.get_context(method)
    handled.add(7)
    tasks = range(1, 7)
    if way == "Process":
        for n in tasks:
            child = context.Process(target=work, args=(n,))
            child.start()
            child.join()
    elif way == "Pool":
        with context.Pool(2, maxtasksperchild=1) as pool:
            pool.map(work, tasks, chunksize=1)
            pool.close()
            pool.join()
    else:
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            list(executor.map(work, tasks))
"""
TASKS = 6
REQUESTS = 60
RECYCLED_AFTER = "9"


def counted(query: StackQuery, selector: str) -> tuple[float, int]:
    """The increase of all series of a counter since they began, and how many series there are.

    Each at the time of its last sample: there increase() has nothing to extrapolate, since a counter begins with a zero.
    """
    last = query.prom_query(f"timestamp({selector})")
    name = selector.partition("{")[0]
    total = 0.0
    for series in last:
        labels = ",".join(f'{label}="{value}"' for label, value in series["metric"].items())
        total += query.prom_value(f"increase({name}{{{labels}}}[1h])", at=float(series["value"][1])) or 0.0
    return total, len(last)


@dataclass
class Program:
    """A program under test: whose telemetry it is, and where it lives."""

    name: str
    directory: Path
    stack: Stack
    service: str = field(init=False)
    started: float = field(default_factory=time.time)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.service = f"{self.name.replace(' ', '-')}-{uuid.uuid4().hex[:8]}"
        self.directory.mkdir()
        for name, source in {"work": WORK, "wsgi": WSGI, "asgi": ASGI, "family": FAMILY}.items():
            (self.directory / f"{name}.py").write_text(source)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTEST_"))}
        own = {
            "OTEL_SERVICE_NAME": self.service,
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.stack.endpoints.otlp_http,
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_BLRP_SCHEDULE_DELAY": "200",
            "OTEL_KIT_SPOOL_DIR": str(self.directory / "spool"),
            # Nothing that these programs do not use: each of some hundred processes would load it, or free it at its end.
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "celery,httpx,redis,requests,sqlalchemy",
            "SERVER": self.name,
        }
        with (self.directory / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.directory, env={**inherited, **own}, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def output(self) -> str:
        return (self.directory / "output.txt").read_text()[-4000:]

    def increase(self, metric: str = "handled_total", **labels: str) -> tuple[float, int]:
        wanted = "".join(f',{name}="{value}"' for name, value in labels.items())
        return counted(self.stack.query, f'{metric}{{service_name="{self.service}"{wanted}}}')

    def spans(self) -> list[int]:
        search = f'{{ resource.service.name = "{self.service}" && span.n > 0 }}'
        return sorted(
            int(attribute["value"]["intValue"])
            for trace in self.stack.query.tempo_search(search, start=self.started - 60, limit=2000)
            for found in trace["spanSet"]["spans"]
            for attribute in found["attributes"]
            if attribute["key"] == "n"
        )

    def lines(self) -> list[int]:
        found = self.stack.query.loki_query(f'{{service_name="{self.service}"}} |~ "^line "', start=self.started - 60)
        return sorted(int(entry["line"].removeprefix("line ")) for entry in found)

    def assert_complete(self, least: int, beside: int) -> None:
        """What was handled, ``least`` numbers from 1, is there as often as it was handled; ``beside`` more are counted."""
        numbers = sorted(map(int, (self.directory / "handled.txt").read_text().split()))
        assert set(numbers) == set(range(1, least + 1))
        counted_in_all = len(numbers) + beside
        poll(lambda: self.increase()[0] >= counted_in_all, 10)
        poll(lambda: len(self.spans()) >= len(numbers) and len(self.lines()) >= len(numbers), 10)
        found = {"spans": self.spans(), "lines": self.lines(), "increase": self.increase()[0]}
        assert found == {"spans": numbers, "lines": numbers, "increase": counted_in_all}, self.output()


@pytest.mark.parametrize("order", ["in order", "last first"])
def test_equal_counts_of_successive_children_add_up_in_one_series(stack: Stack, tmp_path: Path, order: str) -> None:
    assert succession(stack, tmp_path, "a slot", order) == (100, 1)


def test_a_count_that_is_exported_in_the_millisecond_it_began_is_an_increase(stack: Stack, tmp_path: Path) -> None:
    slot = Slots(tmp_path).take({"service.name": "instant"})
    assert slot is not None
    now = time.time()

    def increase(amend: Callable[[ExportMetricsServiceRequest], ExportMetricsServiceRequest]) -> float:
        service = f"instant-{uuid.uuid4().hex[:8]}"
        stack.sender.send(amend(otlp.metrics(service, [otlp.counter("sold", 5, started=now, at=now)])))
        selector = f'sold_total{{service_name="{service}"}}'
        assert poll(lambda: stack.query.prom_query(selector), 10)
        return counted(stack.query, selector)[0]

    assert increase(lambda request: request) == 0
    assert increase(slot.amend) == 5


@pytest.mark.parametrize(("identity", "order"), [("an id of its own", "in order"), ("the same id", "last first")])
def test_without_slots_successive_children_do_not_add_up(
    stack: Stack, tmp_path: Path, identity: str, order: str
) -> None:
    """What slots are for: a series for each child, from which nobody can tell an increase, or one that late data spoils."""
    increase, _series = succession(stack, tmp_path, identity, order)
    assert increase != 100


def succession(stack: Stack, directory: Path, identity: str, order: str) -> tuple[float, int]:
    """The increase at the time of the last sample and the number of series, after 20 children that counted 5 each."""
    service = f"succession-{uuid.uuid4().hex[:8]}"
    arguments = [service, stack.endpoints.otlp_http, identity, order, str(directory)]
    subprocess.run([sys.executable, "-c", SUCCESSION, *arguments], check=True, timeout=60)
    selector = f'sold_total{{service_name="{service}"}}'
    samples = 21 if identity == "a slot" else 20  # with the zero that it began from
    poll(lambda: (stack.query.prom_value(f"sum(count_over_time({selector}[10m]))") or 0) >= samples, 10)
    times = [float(series["value"][1]) for series in stack.query.prom_query(f"timestamp({selector})")]
    increase = stack.query.prom_value(f"sum(increase({selector}[10m] @ {max(times)}))")
    return increase or 0.0, len(times)


@pytest.fixture(scope="module")
def families(
    session_stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], Program]]:
    """A program for each way to have children, all at once."""
    folder = tmp_path_factory.mktemp("families")
    programs = {
        (method, way): Program(f"{method} {way}", folder / f"{method}-{way}", session_stack)
        for method in ("fork", "spawn", "forkserver")
        for way in ("Process", "Pool", "ProcessPoolExecutor")
    }
    for (method, way), program in programs.items():
        program.start(sys.executable, "family.py", method, way)
    yield programs
    for program in programs.values():
        program.end()


@pytest.mark.parametrize("way", ["Process", "Pool", "ProcessPoolExecutor"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_each_task_of_a_child_process_is_there_exactly_once(
    stack: Stack, families: dict[tuple[str, str], Program], method: str, way: str
) -> None:
    program = families[method, way]
    assert program.processes[0].wait(60) == 0, program.output()
    program.assert_complete(TASKS, beside=7)
    # One for the parent, and one for each child alive at once; a pool starts the next before the last has gone.
    assert program.increase()[1] <= (2 if way == "Process" else 5)


SERVERS = {
    "gunicorn sync": ["gunicorn", "--preload", "--max-requests", RECYCLED_AFTER, "wsgi:app"],
    "gunicorn gevent": [
        "gunicorn", "--preload", "--max-requests", RECYCLED_AFTER, "--worker-class", "gevent", "wsgi:app"
    ],
    "gunicorn uvicorn": [
        "gunicorn", "--preload", "--max-requests", RECYCLED_AFTER, "--worker-class", "uvicorn_worker.UvicornWorker", "asgi:app"
    ],
    "uvicorn": ["uvicorn", "--limit-max-requests", RECYCLED_AFTER, "asgi:app"],
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def get(port: int, path: object) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", f"/{path}", headers={"Connection": "close"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False  # a worker that leaves closes connections on which no request has come yet
    finally:
        connection.close()


def serve(program: Program, server: str, *options: str) -> None:
    """A server's whole life: requests, a reload in the middle of them, and an orderly end."""
    port = free_port()
    # gunicorn's control socket would be one for all of them; and a SIGTERM that it sends to a worker which it has only just
    # forked is lost, so that it waits for that one until it may kill it.
    at = (
        ["--bind", f"127.0.0.1:{port}", "--no-control-socket", "--graceful-timeout", "5"]
        if server == "gunicorn"
        else ["--port", str(port)]
    )
    process = program.start(str(BIN / server), "--workers", "4", *at, *options)
    assert poll(lambda: get(port, "ready"), 30), program.output()
    for n in range(1, REQUESTS + 1):
        if n == REQUESTS // 2:
            process.send_signal(signal.SIGHUP)
        assert poll(functools.partial(get, port, n), 20, interval=0.05), program.output()
        time.sleep(0.02)  # the pace of the traffic: time enough for workers to be replaced meanwhile
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def servers(
    session_stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Program, Future[None]]]]:
    """Every server and its life, all lived at once."""
    folder = tmp_path_factory.mktemp("servers")
    programs = {name: Program(name, folder / name.replace(" ", "-"), session_stack) for name in SERVERS}
    try:
        with ThreadPoolExecutor(len(programs)) as threads:
            yield {
                name: (program, threads.submit(serve, program, *SERVERS[name])) for name, program in programs.items()
            }
    finally:
        for program in programs.values():
            program.end()


@pytest.mark.parametrize("server", SERVERS)
def test_each_request_to_a_server_whose_workers_come_and_go_is_there_exactly_once(
    stack: Stack, servers: dict[str, tuple[Program, Future[None]]], server: str
) -> None:
    program, life = servers[server]
    life.result(120)
    preloaded = server.startswith("gunicorn")
    program.assert_complete(REQUESTS, beside=7 if preloaded else 0)
    if "uvicorn" in server:
        requests = program.increase("http_server_request_duration_seconds_count", http_route="/{n}")
        assert requests[0] == program.increase()[0] - (7 if preloaded else 0)
    # The main process and its four workers, and as many again while those from before the reload leave.
    assert program.increase()[1] <= 9
