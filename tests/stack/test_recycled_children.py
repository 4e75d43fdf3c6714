"""Celery's pool of processes, each of which lives for a job or for a few: no job is missing, and no series is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_kit.stack.query import poll
from tests.integration.conftest import redis_server
from tests.stack.conftest import Stack
from tests.stack.test_processes import counted

__all__ = ["redis_server"]

JOBS = 200
CONCURRENCY = 4

APP = """
import os
import otel_kit
otel_kit.configure()
from celery import Celery
from opentelemetry import metrics
app = Celery("recycled", broker=os.environ["BROKER"])
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True
handled = metrics.get_meter("shop").create_counter("handled")

@app.task(name="one")
def one(number):
    handled.add(1)
"""


class Worker:
    """A worker with a queue of its own, whose telemetry goes to the stack."""

    def __init__(self, stack: Stack, directory: Path, broker: str, *options: str) -> None:
        self.stack, self.directory = stack, directory
        self.service = f"recycled-{uuid.uuid4().hex[:8]}"
        (directory / "recycled.py").write_text(APP)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTEST_"))}
        self.environment = {
            **inherited,
            "BROKER": broker,
            "OTEL_SERVICE_NAME": self.service,
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.endpoints.otlp_http,
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_BLRP_SCHEDULE_DELAY": "200",
            "OTEL_KIT_SPOOL_DIR": str(directory / "spool"),
        }
        arguments = (
            "worker",
            "--concurrency",
            str(CONCURRENCY),
            "--queues",
            self.service,
            "--loglevel",
            "info",
            *options,
        )
        with (directory / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "recycled", *arguments, "--without-mingle", "--without-gossip"],
                cwd=directory, env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        assert poll(lambda: " ready." in self.output(), 60), self.output()

    def output(self) -> str:
        return (self.directory / "output.txt").read_text()

    def publish(self) -> None:
        code = f"from recycled import *\nfor n in range({JOBS}): one.apply_async((n,), queue={self.service!r})"
        environment = {**self.environment, "OTEL_SERVICE_NAME": f"{self.service}-producer"}
        subprocess.run([sys.executable, "-c", code], cwd=self.directory, env=environment, check=True, timeout=60)

    def increase(self, metric: str, **labels: str) -> tuple[float, int]:
        wanted = "".join(f',{name}="{value}"' for name, value in labels.items())
        return counted(self.stack.query, f'{metric}{{service_name="{self.service}"{wanted}}}')

    def spans(self) -> list[str]:
        search = f'{{ resource.service.name = "{self.service}" && kind = consumer }}'
        return [
            span["spanID"]
            for trace in self.stack.query.tempo_search(search, limit=10 * JOBS)
            for span in trace["spanSet"]["spans"]
        ]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


@pytest.fixture(params=["1", "5"])
def worker(stack: Stack, tmp_path: Path, redis_server: str, request: pytest.FixtureRequest) -> Iterator[Worker]:
    started = Worker(stack, tmp_path, redis_server, "--max-tasks-per-child", request.param)
    yield started
    started.end()


@pytest.mark.timeout(300)
def test_each_job_of_a_recycled_child_is_one_span_and_one_execution(worker: Worker) -> None:
    worker.publish()
    success = {"job_outcome": "success"}
    # A child takes a second or more to leave, by Celery's own design.
    assert poll(lambda: worker.increase("job_executions_total", **success)[0] >= JOBS, 200), worker.output()[-3000:]
    poll(lambda: len(worker.spans()) >= JOBS, 20)
    assert worker.stop() == 0, worker.output()[-3000:]
    poll(lambda: worker.increase("handled_total")[0] >= JOBS, 20)
    spans = worker.spans()
    assert len(spans) == len(set(spans)) == JOBS
    executions, series = worker.increase("job_executions_total", **success)
    assert (executions, series) == (JOBS, 1)
    # What the job counts itself, in the child: in as many series as there are children at once, a few more while they leave.
    handled, places = worker.increase("handled_total")
    assert handled == JOBS
    assert places <= 3 * CONCURRENCY < JOBS / 5
    waits, _series = worker.increase("job_wait_duration_seconds_count")
    assert waits == JOBS
