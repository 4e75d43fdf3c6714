"""Canaries through a real queue: what a worker makes of them, and what becomes of their sender."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from otel_kit.jobs.canary import canary, canary_job, canary_name
from otel_kit.testing import MetricPoint, OtlpSink
from tests.frameworks import arq_environment
from tests.integration.conftest import Programs, eventually

#: The same canary in every framework, as the documentation has it.
HEAD = """
import os
import otel_kit
otel_kit.configure(os.environ.get("OTEL_SERVICE_NAME", "worker"))
from otel_kit.jobs.canary import canary, canary_job, canary_name
"""
SHOPS = {
    "celery": """
from celery import Celery
app = Celery("shop", broker=os.environ["BROKER"])
app.conf.broker_connection_retry_on_startup = True

@app.task(name=canary_name("mail"))
@canary_job("mail", interval=0.5)
def arrived():
    pass

def publish():
    arrived.apply_async(queue="mail")
""",
    "rq": """
import redis
from rq import Queue, Worker
connection = redis.Redis.from_url(os.environ["BROKER"])

@canary_job("mail", interval=0.5)
def arrived():
    pass

def publish():
    Queue("mail", connection=connection).enqueue("shop.arrived", result_ttl=0)
""",
    "dramatiq": """
import dramatiq
from dramatiq.brokers.redis import RedisBroker
dramatiq.set_broker(RedisBroker(url=os.environ["BROKER"]))

@dramatiq.actor(actor_name=canary_name("mail"), queue_name="mail", max_retries=0)
@canary_job("mail", interval=0.5)
def arrived():
    pass

publish = arrived.send
""",
    "arq": """
import asyncio, threading
from arq import create_pool, func
from arq.connections import RedisSettings

@canary_job("mail", interval=0.5)
async def arrived(ctx):
    pass

class WorkerSettings:
    redis_settings = RedisSettings.from_dsn(os.environ["BROKER"])
    queue_name = "mail"
    functions = [func(arrived, name=canary_name("mail"), keep_result=0)]

if "SENDER" in os.environ:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    pool = asyncio.run_coroutine_threadsafe(create_pool(WorkerSettings.redis_settings), loop).result(10)

async def send():
    await pool.enqueue_job(canary_name("mail"), _queue_name="mail")

def publish():
    asyncio.run_coroutine_threadsafe(send(), loop).result(10)
""",
}
COMMANDS = {
    "celery": ("-m", "celery", "-A", "shop", "worker", "--queues", "mail", "--without-mingle", "--without-gossip"),
    "rq": ("-c", "import shop; shop.Worker(['mail'], connection=shop.connection).work()"),
    "dramatiq": ("-m", "dramatiq", "shop", "--processes", "1", "--threads", "1"),
    "arq": ("-m", "arq", "shop.WorkerSettings"),
}

SENDER = """
from shop import *
import sys
canary(publish, queue="mail", interval=0.5)
sys.stdin.read()
"""


def points(sink: OtlpSink, name: str, service: str) -> list[MetricPoint]:
    return [
        point
        for point in sink.points
        if (point.name, point.service, point.attributes.get("job.name")) == (name, service, "canary.mail")
    ]


@pytest.mark.parametrize("framework", SHOPS)
def test_a_canary_measures_the_road_through_a_real_queue(
    programs: Programs, sink: OtlpSink, redis_url: str, framework: str
) -> None:
    programs.write("shop", HEAD + SHOPS[framework])
    programs.write("sender", SENDER)
    python = arq_environment.python() if framework == "arq" else sys.executable
    worker = programs.start(python, *COMMANDS[framework], BROKER=redis_url)
    environment = programs.environment(BROKER=redis_url, OTEL_SERVICE_NAME="api", SENDER="1")
    with subprocess.Popen(
        [python, "sender.py"], cwd=programs.directory, env=environment, stdin=subprocess.PIPE
    ) as sender:
        try:
            follow(sink)
            assert sender.poll() is None
            # It stops with its process, which ends in peace.
            sender.communicate(timeout=20)
        finally:
            sender.kill()
    assert sender.returncode == 0
    assert programs.stop(worker) == 0


def follow(sink: OtlpSink) -> None:
    """Wait for canaries, and look at what is known of them."""
    sink.wait_for(lambda s: len([r for r in s.logs if r.event_name == "job.completed"]) >= 3, 40)
    for name in ("job.wait.duration", "job.last_success.time", "job.deadline.time"):
        sink.wait_for(lambda s, name=name: points(s, name, "worker"))  # type: ignore[misc]

    def overdue() -> float:
        return points(sink, "job.deadline.time", "worker")[-1].value

    def last() -> float:
        return points(sink, "job.last_success.time", "worker")[-1].value

    # Three intervals after the last arrival, and it moves along.
    eventually(lambda: abs(overdue() - last() - 1.5) < 0.01)
    before = overdue()
    eventually(lambda: overdue() > before)


OUTAGE = """
import logging, os, sys, threading
import otel_kit
otel_kit.configure("api", instrument=False)
from otel_kit.jobs.canary import canary
logging.basicConfig(level=logging.WARNING)
down, calls, concurrent, most = True, 0, 0, 0

def publish():
    global calls, concurrent, most
    calls, concurrent = calls + 1, concurrent + 1
    most = max(most, concurrent)
    try:
        if down:
            raise ConnectionError("no broker")
        threading.Event().wait(0.35)
    finally:
        concurrent -= 1

first = canary(publish, queue="mail", interval=0.1)
assert canary(publish, queue="mail", interval=0.1) is first
child = os.fork()
if child == 0:
    before = calls
    threading.Event().wait(0.5)
    os._exit(0 if calls == before else 1)
assert os.waitpid(child, 0)[1] == 0, "a child sends too"
while calls < 5:
    threading.Event().wait(0.02)
down = False
before = calls
while calls < before + 3:
    threading.Event().wait(0.02)
print(most)
"""


def test_a_sender_never_raises_never_overlaps_and_warns_once_per_outage(programs: Programs) -> None:
    ran = programs.run(OUTAGE)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "1\n"
    said = [line for line in ran.stderr.splitlines() if "canary" in line]
    assert len(said) == 2, ran.stderr
    assert "the canary of queue mail cannot be sent (ConnectionError: no broker)" in said[0]
    assert "can be sent again after" in said[1]


def test_a_canary_is_a_job_of_its_queues_name() -> None:
    assert canary_name("mail") == "canary.mail"

    @canary_job("mail", interval=60)
    def arrived() -> str:
        return "here"

    assert arrived() == "here"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"queue": ""}, "queue='' is not accepted; accepted: a queue's name"),
        ({"interval": 0}, "interval=0 is not accepted; accepted: seconds, from 0.1 to 86400"),
        ({"interval": float("nan")}, "interval=nan is not accepted"),
        ({"interval": True}, "interval=True is not accepted"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", "\\(")):
        canary(os.getpid, **{"queue": "mail", **arguments})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="publish=None is not accepted"):
        canary(None)  # type: ignore[arg-type]
