"""A real Celery worker under test, and the application that it runs."""

from __future__ import annotations

import sys
from collections import Counter

from otel_kit.testing import LogRecord, OtlpSink, Span
from tests.integration.conftest import Programs, eventually

APP = """
import logging, os, signal, sys, time
import otel_kit
otel_kit.configure(os.environ.get("OTEL_SERVICE_NAME", "worker"))
import redis
from celery import Celery
from celery.exceptions import Ignore
from celery.utils.log import get_task_logger

app = Celery("jobs", broker=os.environ["BROKER"])
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True
cache = redis.Redis.from_url(os.environ.get("CACHE", os.environ["BROKER"]))
log = get_task_logger(__name__)

@app.task(name="succeed")
def succeed(number=0):
    log.info("task logger %s", number)
    logging.getLogger("plain").warning("plain logger %s", number)
    cache.set("number", number)

@app.task(name="fail")
def fail():
    raise ZeroDivisionError("on purpose")

class Expected(Exception):
    pass

@app.task(name="fail.expected", throws=(Expected,))
def fail_as_expected():
    raise Expected("may happen")

@app.task(name="retry.once", bind=True, max_retries=2)
def retry_once(self):
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("not yet"), countdown=0.3)

@app.task(name="die")
def die():
    os.kill(os.getpid(), signal.SIGKILL)

@app.task(name="too.long", time_limit=1)
def too_long():
    time.sleep(120)

class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no text")

@app.task(name="fail.unspeakable")
def fail_unspeakable():
    raise Unspeakable()

@app.task(name="ignore")
def ignore():
    raise Ignore()

@app.task(name="parent")
def parent():
    succeed.delay(7)
"""


class Worker:
    """A worker under test and what publishes to it."""

    def __init__(self, programs: Programs, sink: OtlpSink, broker: str, app: str = APP) -> None:
        self.programs, self.sink, self.broker = programs, sink, broker
        programs.write("jobs", app)

    def start(self, *options: str, **environment: str) -> None:
        arguments = (
            "-m",
            "celery",
            "-A",
            "jobs",
            "worker",
            "--loglevel",
            "info",
            "--without-mingle",
            "--without-gossip",
        )
        self.process = self.programs.start(sys.executable, *arguments, *options, BROKER=self.broker, **environment)
        eventually(lambda: " ready." in self.programs.output(self.process), 30)

    def publish(self, code: str) -> None:
        ran = self.programs.run(f"from jobs import *\n{code}", BROKER=self.broker, OTEL_SERVICE_NAME="producer")
        assert ran.returncode == 0, ran.stderr

    def runs(self, name: str) -> list[Span]:
        return [span for span in self.sink.spans if span.kind == "CONSUMER" and span.attributes["job.name"] == name]

    def stop(self) -> None:
        assert self.programs.stop(self.process) == 0, self.programs.output(self.process)

    def executions(self) -> dict[tuple[str, str], float]:
        """Runs by name and outcome, summed over processes, zeros left out."""
        latest = {
            (
                point.resource["service.instance.id"],
                point.attributes["job.name"],
                point.attributes["job.outcome"],
            ): point
            for point in self.sink.points
            if point.name == "job.executions"
        }
        total: Counter[tuple[str, str]] = Counter()
        for (_instance, name, outcome), point in latest.items():
            total[name, outcome] += int(point.value)
        return {key: count for key, count in total.items() if count}

    def events(self) -> list[str]:
        """The events of all jobs, in order of time."""
        return [r.event_name for r in sorted(self.sink.logs, key=lambda record: record.time) if r.event_name]

    def outcomes(self, name: str) -> set[str]:
        """The outcomes for which a job has a series."""
        points = [p for p in self.sink.points if p.name == "job.executions" and p.attributes["job.name"] == name]
        return {point.attributes["job.outcome"] for point in points}

    def last(self, name: str, **attributes: str) -> float:
        """The last value of a series of the worker's."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        found = [
            point
            for point in self.sink.points
            if point.name == name and point.service == "worker" and wanted.items() <= point.attributes.items()
        ]
        return max(found, key=lambda point: point.time).value

    def spans(self, kind: str, name: str) -> list[Span]:
        """A job's spans of one kind, in the order of their start."""
        found = [s for s in self.sink.spans if s.kind == kind and s.attributes.get("job.name") == name]
        return sorted(found, key=lambda span: span.start)

    def records(self, event: str) -> list[LogRecord]:
        """The records of an event, in order of time."""
        return [r for r in sorted(self.sink.logs, key=lambda record: record.time) if r.event_name == event]
