"""One reporter for each queue, with an identity of the queue's own, and nothing changed in the broker but one key."""

from __future__ import annotations

import itertools
import sys
import time

import redis

from otel_kit.testing import MetricPoint, OtlpSink
from tests.integration.conftest import Programs, eventually

SCRIPT = """
import sys
import time
import otel_kit
otel_kit.configure(sys.argv[1] if len(sys.argv) > 1 else "worker", environment="test")
import os
from otel_kit.integrations.redis_keys import RedisLease, own_client
from otel_kit.jobs.queues import QueueState, watch_queue

class List:
    system, name = "redis", "default"
    def __init__(self, client):
        self.client = client
    def read(self):
        ready = self.client.llen("default")
        return QueueState(ready, oldest_ready_at=time.time() - 5 if ready else None)

client = own_client(os.environ["BROKER"])
watch_queue(List(client), RedisLease(client))
print("up", flush=True)
time.sleep(60)
"""


def _depths(sink: OtlpSink, state: str = "ready") -> list[MetricPoint]:
    found = [p for p in list(sink.points) if p.name == "job.queue.depth" and p.attributes["job.state"] == state]
    return sorted(found, key=lambda point: point.time)


def test_a_queue_has_the_same_identity_whoever_reports_it(programs: Programs, sink: OtlpSink, redis_url: str) -> None:
    programs.write("watch", SCRIPT)
    first = programs.start(sys.executable, "watch.py", "one", BROKER=redis_url)
    eventually(lambda: _depths(sink))
    second = programs.start(sys.executable, "watch.py", "two", BROKER=redis_url)
    eventually(lambda: "up" in programs.output(second))
    with redis.Redis.from_url(redis_url) as client:
        holder = client.get("otel-kit:reporter:redis/default")
        # The other asks several times in a second, and neither gets it nor reports.
        time.sleep(1.5)
        assert client.get("otel-kit:reporter:redis/default") == holder
        assert 0 < client.pttl("otel-kit:reporter:redis/default") <= 1250
        assert client.keys("*") == [b"otel-kit:reporter:redis/default"]
        client.rpush("default", "a", "b")
    times = [point.time for point in _depths(sink)]
    assert min(b - a for a, b in itertools.pairwise(times)) > 0.25  # of an interval of 0.5 s
    eventually(lambda: _depths(sink)[-1].value == 2)
    before = time.time()
    first.kill()
    first.wait()
    eventually(lambda: _depths(sink)[-1].time > before + 0.6, 10)
    assert _depths(sink)[-1].value == 2
    identities = {(p.service, p.resource["service.instance.id"]) for p in _depths(sink)}
    assert identities == {("queues", "queue:redis/default")}
    resource = _depths(sink)[-1].resource
    assert resource["deployment.environment.name"] == "test"
    assert "process.pid" not in resource
    assert {state: _depths(sink, state)[-1].value for state in ("scheduled", "reserved", "dead")} == {
        "scheduled": 0, "reserved": 0, "dead": 0,
    }  # fmt: skip
    ages = [p for p in sink.points if p.name == "job.queue.oldest_age"]
    assert 4.9 < max(age.value for age in ages) < 6
    assert [span for span in sink.spans if span.kind == "CLIENT"] == []


def test_several_report_where_leases_are_off(programs: Programs, sink: OtlpSink, redis_url: str) -> None:
    programs.write("watch", SCRIPT)
    for name in ("one", "two"):
        programs.start(sys.executable, "watch.py", name, BROKER=redis_url, OTEL_KIT_QUEUE_METRICS="always")
    eventually(lambda: all("up" in programs.output(process) for process in programs.running))
    with redis.Redis.from_url(redis_url) as client:

        def both() -> bool:
            times = [point.time for point in _depths(sink)[-6:]]
            return len(times) == 6 and times[-1] - times[0] < 1.6

        eventually(both)
        assert client.keys("*") == []


def test_nobody_reports_where_it_is_off(programs: Programs, sink: OtlpSink, redis_url: str) -> None:
    programs.write("watch", SCRIPT)
    process = programs.start(sys.executable, "watch.py", BROKER=redis_url, OTEL_KIT_QUEUE_METRICS="off")
    eventually(lambda: "up" in programs.output(process))
    eventually(lambda: len([p for p in list(sink.points) if p.name == "otel_kit.process.up"]) > 3)
    assert _depths(sink) == []


def test_a_broker_that_is_down_is_said_once_and_forgotten_when_it_returns(
    programs: Programs, sink: OtlpSink, redis_url: str
) -> None:
    script = SCRIPT.replace(
        "    def read(self):\n",
        "    def read(self):\n        import pathlib\n        if pathlib.Path('down').exists(): raise ConnectionError('gone')\n",
    )
    programs.write("watch", script)
    process = programs.start(sys.executable, "watch.py", BROKER=redis_url)
    eventually(lambda: _depths(sink))
    (programs.directory / "down").touch()
    eventually(lambda: "cannot be read: gone" in programs.output(process))
    gone = len(_depths(sink))
    time.sleep(1.5)
    assert len(_depths(sink)) <= gone + 1
    assert programs.output(process).count("cannot be read") == 1
    (programs.directory / "down").unlink()
    eventually(lambda: len(_depths(sink)) > gone + 1)
