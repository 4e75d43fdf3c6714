"""`otel-kit queues watch`: queues and dead workers, seen from a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import redis

from otel_kit.integrations.redis_leases import RedisLeases
from otel_kit.jobs.lease_store import Lease
from otel_kit.jobs.model import Job
from otel_kit.telemetry.redaction import Redactor
from otel_kit.testing import OtlpSink
from tests.integration.conftest import Programs, eventually

Cli = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = (sys.executable, "-m", "otel_kit.cli.main", "queues", "watch")


@pytest.fixture
def cli(programs: Programs) -> Cli:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=programs.directory, env=programs.environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


def publish_with_celery(programs: Programs, url: str) -> None:
    ran = programs.run(
        f"from celery import Celery; app = Celery(broker={url!r}); [app.send_task('render', queue='mail') for _ in range(3)]"
    )
    assert ran.returncode == 0, ran.stderr


def publish_with_rq(programs: Programs, url: str) -> None:
    ran = programs.run(
        f"import redis; from rq import Queue; q = Queue('mail', connection=redis.Redis.from_url({url!r}));"
        "[q.enqueue('shop.render') for _ in range(3)]"
    )
    assert ran.returncode == 0, ran.stderr


def publish_with_dramatiq(programs: Programs, url: str) -> None:
    ran = programs.run(
        f"import dramatiq; from dramatiq.brokers.redis import RedisBroker; b = RedisBroker(url={url!r});"
        "b.declare_queue('mail'); [b.enqueue(dramatiq.Message('mail', 'render', (), {{}}, {{}})) for _ in range(3)]".replace(
            "{{}}", "{}"
        )
    )
    assert ran.returncode == 0, ran.stderr


PUBLISHERS = {"celery": publish_with_celery, "rq": publish_with_rq, "dramatiq": publish_with_dramatiq}


@pytest.mark.parametrize("framework", PUBLISHERS)
def test_queues_are_printed_as_they_are_now(cli: Cli, programs: Programs, redis_url: str, framework: str) -> None:
    PUBLISHERS[framework](programs, redis_url)
    ran = cli(f"--{framework}", redis_url, "--queue", "mail", "--queue", "empty", "--once")
    assert ran.returncode == 0, ran.stderr
    rows = {line.split()[0]: line.split()[1:] for line in ran.stdout.splitlines() if line.strip()}
    assert rows["queue"] == ["broker", "ready", "scheduled", "reserved", "dead", "oldest", "ready"]
    assert rows["mail"][:5] == ["redis", "3", "0", "0", "0"]
    assert rows["empty"][:5] == ["redis", "0", "0", "0", "0"]
    with redis.Redis.from_url(redis_url) as client:
        assert not client.keys("otel-kit:*")  # a look leaves nothing behind


def test_queues_are_reported_and_dead_workers_jobs_recorded_without_any_worker(
    programs: Programs, sink: OtlpSink, redis_url: str
) -> None:
    publish_with_celery(programs, redis_url)
    store = RedisLeases(redis_url)
    dead = Lease(Job("render", "r1", "mail", "redis"), time.time(), "dead", "shop", "process 7 of worker on host-a")
    store.hold([(dead.member, dead.to_text(Redactor()))], 0.01)
    watcher = programs.start(*COMMAND, "--celery", redis_url, "--queue", "mail", OTEL_KIT_LEASE_TTL="1")
    sink.wait_for(lambda s: [p for p in s.points if p.name == "job.queue.depth" and p.value == 3], 30)
    sink.wait_for(lambda s: [record for record in s.logs if record.event_name == "job.lost"], 30)
    assert [each.lease.job.id for each in store.lost()] == ["r1"]
    assert f"watching mail of {redis_url}" in programs.output(watcher)
    assert programs.stop(watcher) == 0
    store.close()
    depth = [p for p in sink.points if p.name == "job.queue.depth" and p.value == 3][-1]
    assert depth.attributes["messaging.destination.name"] == "mail"
    lost = [p for p in sink.points if p.name == "job.executions" and p.attributes["job.outcome"] == "lost"]
    assert lost[-1].value == 1


def test_ctrl_c_ends_it_in_peace(programs: Programs, redis_url: str) -> None:
    watcher = programs.start(*COMMAND, "--rq", redis_url, "--queue", "mail")
    eventually(lambda: "watching mail" in programs.output(watcher), 30)
    os.kill(watcher.pid, signal.SIGINT)
    assert watcher.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--queue", "mail"), "no broker is given; expected one of --rq, --celery, --arq, --dramatiq"),
        (("--rq", "redis://host"), "no queue is given; expected --queue NAME"),
        (
            ("--rq", "localhost", "--queue", "mail"),
            "Invalid value for --rq: 'localhost' is no URL; expected one like redis://",
        ),
        (
            ("--rq", "http://user:secret@host", "--queue", "mail"),
            "Invalid value for --rq: 'http://host' is not accepted",
        ),
    ],
)
def test_a_wrong_option_is_named_with_what_is_right(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    ran = cli(*arguments, "--once")
    assert ran.returncode == 2
    assert said in " ".join(ran.stderr.split())
    assert "secret" not in ran.stderr


def test_a_broker_that_does_not_answer_is_named(cli: Cli) -> None:
    ran = cli("--rq", "redis://user:secret@127.0.0.1:1/0", "--queue", "mail", "--once")
    assert ran.returncode == 1
    assert "mail: redis://127.0.0.1:1/0 cannot be read" in ran.stderr
    assert "secret" not in ran.stderr
