"""What is known of a job's past, and when it is due."""

from __future__ import annotations

import time

import pytest

from otel_kit.jobs.history import History, Past
from otel_kit.jobs.model import Outcome


def _value(observed: object, name: str) -> float:
    return next(value for value, labels in observed if labels["job.name"] == name)  # type: ignore[attr-defined]


def test_failures_in_a_row_end_with_a_success() -> None:
    history = History()
    counts = []
    for outcome in (Outcome.FAILURE, Outcome.RETRY, Outcome.LOST, Outcome.FAILURE, Outcome.SUCCESS, Outcome.FAILURE):
        history.ended("job", outcome)
        counts.append(_value(history.observe_consecutive(), "job"))
    assert counts == [1, 1, 2, 3, 0, 1]


def test_a_job_that_is_expected_has_no_failures_yet() -> None:
    history = History()
    history.expect("job")
    assert _value(history.observe_consecutive(), "job") == 0
    assert list(history.observe_times("success")) == []


def test_the_deadline_is_the_run_after_the_last_success_plus_grace() -> None:
    history = History()
    history.schedule("nightly", lambda after: after + 86_400, 600)
    assert _value(history.observe_deadlines(), "nightly") == pytest.approx(time.time() + 87_000, abs=5)
    history.remember({"nightly": Past(last_success=1000.0)})
    # What this process knows itself stays: it has not seen a success, and its own schedule began just now.
    assert _value(history.observe_deadlines(), "nightly") == pytest.approx(time.time() + 87_000, abs=5)


def test_a_success_of_an_earlier_process_sets_the_deadline() -> None:
    history = History()
    history.remember({"nightly": Past(last_success=1000.0, consecutive_failures=2)})
    history.schedule("nightly", lambda after: after + 86_400, 600)
    assert _value(history.observe_deadlines(), "nightly") == 88_000
    assert _value(history.observe_consecutive(), "nightly") == 2
    history.ended("nightly", Outcome.SUCCESS)
    assert _value(history.observe_deadlines(), "nightly") == pytest.approx(time.time() + 87_000, abs=5)


def test_a_schedule_is_asked_once_for_each_success() -> None:
    asked: list[float] = []

    def next_run(after: float) -> float | None:
        asked.append(after)
        return None

    history = History()
    history.schedule("once", next_run, 1)
    assert [list(history.observe_deadlines()) for _ in range(3)] == [[], [], []]
    assert len(asked) == 1


def test_a_job_that_never_succeeded_stays_due_across_restarts() -> None:
    history = History()
    history.remember({"nightly": Past(first_seen=1000.0)})
    history.schedule("nightly", lambda after: after + 86_400, 600)
    assert _value(history.observe_deadlines(), "nightly") == 88_000


def test_a_job_that_the_service_no_longer_has_does_not_come_back() -> None:
    history = History()
    history.remember({"removed": Past(consecutive_failures=5), "kept": Past(consecutive_failures=2)})
    history.expect("kept")
    assert [labels["job.name"] for _value, labels in history.observe_consecutive()] == ["kept"]
    assert _value(history.observe_consecutive(), "kept") == 2
