"""A framework's worker, its sink, and what came of it; and the record of what each framework was seen to do."""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis

from otel_kit.testing import LogRecord, MetricPoint, OtlpSink, Span
from tests.frameworks.adapter import JOBS, Framework
from tests.integration.conftest import QUICK, Programs, eventually, free_port, postgres_url, redis_server

__all__ = ["postgres_url", "redis_server"]

_Labels = tuple[tuple[str, Any], ...]

APPS = Path(__file__).parent / "apps"
#: What the documentation's table is made from.
RESULTS = Path(__file__).parents[2] / "docs" / "frameworks" / "capabilities.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-capabilities", action="store_true", help="write docs/frameworks/capabilities.json")


#: The jobs that run because a scenario has published them.
ONCE = {*JOBS, "no.such.job"} - {"periodic"}
#: Seconds between two exports of a program's metrics, as `Programs` sets it.
EXPORT_INTERVAL = int(QUICK["OTEL_METRIC_EXPORT_INTERVAL"]) / 1000
#: Seconds for a thousand publishes on a busy machine.
PATIENCE = 120
PRODUCER = """
import json, sys, traceback
answers, sys.stdout = sys.stdout, sys.stderr  # one line for each request, and nothing else
import app, otel_kit
for line in sys.stdin:
    complaint = ""
    try:
        exec(json.loads(line), {"app": app})
        otel_kit.flush(10)
    except Exception:
        complaint = traceback.format_exc()
    print(json.dumps(complaint), file=answers, flush=True)
"""


class Bench:
    """One framework under test: its programs, and what they sent."""

    def __init__(self, framework: Framework, directory: Path, broker: str, sink: OtlpSink) -> None:
        self.framework = framework
        self.broker = broker
        self.sink = sink
        self.programs = Programs(directory, sink)
        shutil.copy(APPS / f"{framework.app}.py", directory / "app.py")
        self._latest: dict[tuple[str, str, str, _Labels], MetricPoint] = {}
        self._read = 0
        self._producer: subprocess.Popen[str] | None = None

    def latest(self) -> dict[tuple[str, str, str, _Labels], MetricPoint]:
        """The last point of each series, by metric, service, process and attributes."""
        new = self.sink.points[self._read :]
        self._read += len(new)
        for point in new:
            key = tuple(sorted(point.attributes.items()))
            self._latest[point.name, point.service, point.resource.get("service.instance.id", ""), key] = point
        return self._latest

    def environment(self, **extra: str) -> dict[str, str]:
        return {"BROKER": self.broker, "OTEL_SERVICE_NAME": "worker", **self.framework.environment(), **extra}

    def start(self, **extra: str) -> subprocess.Popen[str]:
        """Start one more worker, and wait until it takes jobs."""
        process = self.programs.start(*self.framework.command(), **self.environment(**extra))
        self._await_ready(process, self.framework.ready)
        return process

    def start_all(self) -> None:
        """Start the worker that all scenarios share, and its companions."""
        companions = self.framework.companions()
        self.start(**({} if companions else {"PERIODIC": "1"}))
        for command in companions:
            process = self.programs.start(*command, **self.environment(PERIODIC="1", OTEL_SERVICE_NAME="scheduler"))
            self._await_ready(process, self.framework.companion_ready)

    def _await_ready(self, process: subprocess.Popen[str], ready: Callable[[str], bool]) -> None:
        def up() -> bool:
            output = self.programs.output(process)
            assert process.poll() is None, output
            return ready(output)

        eventually(up, 60)

    def run(self, code: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run code in a producer's process to its end."""
        command = [self.framework.python(), "-c", f"import app\n{code}"]
        environment = self.programs.environment(**self.environment(OTEL_SERVICE_NAME="producer", **extra))
        return subprocess.run(
            command,
            cwd=self.programs.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def publish(self, name: str, *arguments: object, count: int = 1, **options: object) -> None:
        """Publish from a process that does nothing else, and wait until it has also sent its telemetry."""
        given = "".join(f", {value!r}" for value in arguments) + "".join(f", {k}={v!r}" for k, v in options.items())
        producer = self._producer_at_work()
        assert producer.stdin is not None
        assert producer.stdout is not None
        producer.stdin.write(json.dumps(f"for _ in range({count}): app.publish({name!r}{given})") + "\n")
        producer.stdin.flush()
        ready, _, _ = select.select([producer.stdout], [], [], PATIENCE)
        line = producer.stdout.readline() if ready else ""
        assert line, f"the producer said nothing within {PATIENCE} s, or ended\n{self.output()}"
        complaint = json.loads(line)
        assert not complaint, complaint

    def _producer_at_work(self) -> subprocess.Popen[str]:
        if self._producer is None:
            (self.programs.directory / "producer.py").write_text(PRODUCER)
            environment = self.environment(OTEL_SERVICE_NAME="producer")
            self._producer = self.programs.converse("producer.py", python=self.framework.python(), **environment)
        return self._producer

    def output(self) -> str:
        """What all programs have printed, for a failure's message."""
        return "\n".join(self.programs.output(process)[-3000:] for process in self.programs.running)


class Seen:
    """What came since it was made."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        sink = bench.sink
        self._began = time.time()
        self._spans, self._logs, self._points = len(sink.spans), len(sink.logs), len(sink.points)
        self._before = self._totals()

    def _totals(self) -> dict[str, dict[_Labels, tuple[float, int]]]:
        """Sums over processes, by metric and attributes, to which the service is added as one more."""
        totals: dict[str, dict[_Labels, tuple[float, int]]] = defaultdict(dict)
        for (name, service, _instance, labels), point in self._bench.latest().items():
            key = (*labels, ("service", service))
            value, count = totals[name].get(key, (0.0, 0))
            totals[name][key] = (value + point.value, count + point.count)
        return totals

    def spans(self, job: str, kind: str | None = None) -> list[Span]:
        """Spans of a job, in the order of their start."""
        new = [span for span in self._bench.sink.spans[self._spans :] if span.start >= self._began]
        found = [span for span in new if span.attributes.get("job.name") == job]
        return sorted((s for s in found if kind in (None, s.kind)), key=lambda span: span.start)

    def sends(self, job: str) -> list[Span]:
        return self.spans(job, "PRODUCER")

    def runs(self, job: str) -> list[Span]:
        kind = "CONSUMER" if self._bench.framework.system else "INTERNAL"
        return [span for span in self.spans(job, kind) if "job.outcome" in span.attributes]

    def events(self, job: str) -> list[str]:
        return [record.event_name for record in self.records(job) if record.event_name.startswith("job.")]

    def records(self, job: str) -> list[LogRecord]:
        found = [r for r in self._bench.sink.logs[self._logs :] if r.attributes.get("job.name") == job]
        return sorted(found, key=lambda record: record.time)

    def counted(self, metric: str, **labels: str) -> float:
        """By how much a counter's sum over all processes has grown."""
        return self._grown(metric, 0, labels)

    def measured(self, metric: str, **labels: str) -> int:
        """How many values a histogram has got."""
        return int(self._grown(metric, 1, labels))

    def _grown(self, metric: str, which: int, labels: dict[str, str]) -> float:
        wanted = {name.replace("__", "."): value for name, value in labels.items()}

        def total(totals: dict[_Labels, tuple[float, int]]) -> float:
            return sum(v[which] for key, v in totals.items() if wanted.items() <= dict(key).items())

        return total(self._totals()[metric]) - total(self._before[metric])

    def gauge(self, metric: str, **labels: str) -> list[MetricPoint]:
        """Points of a gauge, in the order in which they came."""
        wanted = {name.replace("__", "."): value for name, value in labels.items()}
        points = self._bench.sink.points[self._points :]
        return [point for point in points if point.name == metric and wanted.items() <= point.attributes.items()]

    def outcomes(self, job: str) -> dict[str, int]:
        """Executions of a job by outcome."""
        totals, found = self._totals()["job.executions"], {}
        for key, (value, _count) in totals.items():
            labels = dict(key)
            if labels["job.name"] == job:
                before = self._before["job.executions"].get(key, (0.0, 0))[0]
                if value - before:
                    found[labels["job.outcome"]] = found.get(labels["job.outcome"], 0) + int(value - before)
        return found


@pytest.fixture(scope="module")
def broker_of(request: pytest.FixtureRequest) -> Callable[[Framework, int], str]:
    """The server that a framework wants: a numbered database of it, empty."""

    def find(framework: Framework, number: int) -> str:
        if framework.broker == "postgres":
            return _database(str(request.getfixturevalue("postgres_url")), number)
        url = str(request.getfixturevalue("redis_server")).removesuffix("/0") + f"/{number}"
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        return url

    return find


def _database(url: str, number: int) -> str:
    with psycopg.connect(url.format(""), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS suite_{number} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE suite_{number}")
    made = urlsplit(url.format(""))
    return urlunsplit(made._replace(scheme="postgresql{}", path=f"/suite_{number}"))


@pytest.fixture(scope="module")
def bench(
    framework: Framework, broker_of: Callable[[Framework, int], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    """The framework with one worker, and its companions, at work."""
    with OtlpSink() as sink:
        folder = tmp_path_factory.mktemp(framework.name.replace("-", "_"))
        made = Bench(framework, folder, broker_of(framework, 1), sink)
        try:
            made.start_all()
            yield made
        finally:
            made.programs.end()


@pytest.fixture
def fresh(
    framework: Framework, broker_of: Callable[[Framework, int], str], tmp_path: Path, sink: OtlpSink
) -> Iterator[Bench]:
    """The framework with nothing started, for scenarios that need a broker and workers to themselves."""
    made = Bench(framework, tmp_path, broker_of(framework, 2), sink)
    try:
        yield made
    finally:
        made.programs.end()


@pytest.fixture
def seen(bench: Bench) -> Seen:
    """What comes from here on, when all that the scenario before has left to count is counted."""

    def counted() -> dict[Any, float]:
        points = [(key, point) for key, point in bench.latest().items() if key[0] == "job.executions"]
        return {key: point.value for key, point in points if point.attributes["job.name"] in ONCE}

    def settled() -> bool:
        before = counted()
        time.sleep(2.2 * EXPORT_INTERVAL)
        return before == counted()

    eventually(settled, 30)
    return Seen(bench)


@pytest.fixture(scope="session")
def dead_broker() -> str:
    """A URL where nobody listens."""
    return f"redis://127.0.0.1:{free_port()}/0"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:  # type: ignore[misc]
    report = yield
    capability = item.get_closest_marker("capability")
    callspec = getattr(item, "callspec", None)
    if report.when == "call" and capability is not None and callspec is not None:
        framework = callspec.params["framework"]
        report.user_properties.append(("capability", [capability.args[0], framework.title, report.passed]))
    return report  # type: ignore[return-value]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--write-capabilities"):
        return
    seen: dict[str, dict[str, Any]] = defaultdict(dict)
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "capability":
                    capability, title, passed = value
                    seen[capability][title] = seen[capability].get(title, True) and passed
    from tests.frameworks.registry import frameworks
    from tests.frameworks.test_suite import CAPABILITIES

    # What this run has left out keeps what an earlier one has seen.
    before = json.loads(RESULTS.read_text())["capabilities"] if RESULTS.exists() else {}
    found = {text: {**before.get(text, {}), **seen[text]} for text in CAPABILITIES.values()}
    for each in frameworks():
        for key, why in each.lacks.items():
            found[CAPABILITIES[key]][each.title] = why
    titles = [each.title for each in frameworks()]
    table = {"frameworks": titles, "capabilities": found}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")
