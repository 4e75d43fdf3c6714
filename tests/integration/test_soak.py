"""A day of traffic in a minute, through outages of every kind: nothing may grow."""

from __future__ import annotations

import pytest

from otel_kit.testing import OtlpSink
from otel_kit.testing.faults import Accept, Behaviour, CutReading, Hang, Status
from tests.integration.application import Application
from tests.integration.conftest import Programs

#: One request a second for 24 hours.
REQUESTS = 24 * 3600
ROUNDS = 24
WEATHER: list[Behaviour] = [Accept(), Status(503), Accept(), Hang(), Accept(), CutReading(after=100)]


@pytest.mark.timeout(400)
def test_day_of_traffic_and_outages_leaves_memory_threads_and_files_as_they_were(
    programs: Programs, sink: OtlpSink
) -> None:
    told = []
    with Application(programs) as application:
        for number in range(ROUNDS):
            sink.script.set(WEATHER[number % len(WEATHER)])
            told.append(application.serve(number * REQUESTS // ROUNDS, (number + 1) * REQUESTS // ROUNDS, pause=0))
            sink.clear()
        sink.script.set(Accept())
        application.end()
    for hour in (0, ROUNDS // 4, ROUNDS // 2, ROUNDS - 1):
        held = told[hour]
        print(
            f"\nhour {hour + 1:2}: {held['memory'] / 2**20:6.1f} MiB, {held['threads']} threads, {held['files']} files,"
            f" p99 {held['p99'] * 1e3:.2f} ms",
            end="",
        )
    assert not any(held["faults"] for held in told)
    # Queues, pools and the allocator have found their size after a quarter of it.
    settled = max(held["memory"] for held in told[: ROUNDS // 4])
    assert max(held["memory"] for held in told[ROUNDS // 2 :]) < settled * 1.1 + 4 * 2**20
    assert max(held["threads"] for held in told) <= told[0]["threads"] + 3
    assert told[-1]["threads"] <= told[ROUNDS // 4]["threads"]
    assert max(held["files"] for held in told[ROUNDS // 2 :]) <= max(held["files"] for held in told[: ROUNDS // 4]) + 2
