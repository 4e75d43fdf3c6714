"""Slots, busy time, heartbeats."""

from __future__ import annotations

import time

import pytest

from otel_kit.jobs.workers import Workers


def _by_state(workers: Workers) -> dict[str, float]:
    return {labels["job.worker.state"]: value for value, labels in workers.observe_count()}


def test_busy_and_available_add_up_to_the_slots() -> None:
    workers = Workers()
    workers.pool(["b", "a"], lambda: 4)
    workers.change("a", 1)
    assert _by_state(workers) == {"busy": 1, "available": 3}
    assert [(value, labels["messaging.destination.name"]) for value, labels in workers.observe_slots()] == [(4, "a,b")]


def test_busy_time_grows_while_a_job_runs_and_never_falls() -> None:
    workers = Workers()
    workers.pool(["a"], lambda: 2)
    readings = []
    for change in (1, 1, 0, -1, -1, 0):
        workers.change("a", change)
        time.sleep(0.02)
        readings.append(next(iter(workers.observe_busy()))[0])
    assert readings == sorted(readings)
    assert readings[0] == pytest.approx(0.02, abs=0.015)
    assert readings[-1] == readings[-2]


def test_a_number_of_slots_that_cannot_be_told_costs_its_own_series_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_VERSION")
    workers = Workers()
    workers.pool(["a"], lambda: 1 // 0)
    workers.pool(["b"], lambda: 1)
    assert [labels["messaging.destination.name"] for _value, labels in workers.observe_slots()] == ["b"]


def test_a_beat_is_the_last_one_until_the_next() -> None:
    workers = Workers()
    workers.pool(["a"], lambda: 1)
    workers.beat("loop")
    time.sleep(0.05)
    beats = {labels["source"]: value for value, labels in workers.observe_beats()}
    assert beats["thread"] > beats["loop"]
