"""Deadlines: the way out never takes longer than it may."""

from __future__ import annotations

import threading
import time

import pytest

from otel_kit.lifecycle import Lifecycle


def test_a_flush_waits_for_all_and_says_so() -> None:
    lifecycle = Lifecycle()
    done: list[str] = []
    lifecycle.on_flush("one", lambda _timeout: done.append("one"))
    lifecycle.on_flush("two", lambda _timeout: done.append("two"))
    assert lifecycle.flush(5.0) is True
    assert sorted(done) == ["one", "two"]


def test_a_flush_that_hangs_costs_no_more_than_the_budget_and_does_not_hold_up_the_others() -> None:
    lifecycle = Lifecycle()
    release, finished = threading.Event(), threading.Event()
    lifecycle.on_flush("hangs", lambda _timeout: release.wait(30) and None)
    lifecycle.on_flush("works", lambda _timeout: finished.set())
    began = time.monotonic()
    assert lifecycle.flush(0.3) is False
    assert time.monotonic() - began < 2
    assert finished.wait(5)
    release.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_flush_that_fails_does_not_keep_the_others_from_flushing() -> None:
    lifecycle = Lifecycle()
    finished = threading.Event()

    def fails(_timeout: float) -> None:
        raise OSError("disk")

    lifecycle.on_flush("fails", fails)
    lifecycle.on_flush("works", lambda _timeout: finished.set())
    began = time.monotonic()
    assert lifecycle.flush(30.0) is False
    assert time.monotonic() - began < 10, "the failure was not reported, the deadline had to end the wait"
    assert finished.is_set()
    # Here the fault ends the thread, and pytest must hear of that within this test.
    for thread in threading.enumerate():
        if thread.name == "otel-kit-fails":
            thread.join(10)


def test_closing_waits_for_the_run_that_it_asked_for_and_not_for_one_under_way() -> None:
    lifecycle = Lifecycle()
    began, release = threading.Event(), threading.Event()
    ended: list[bool] = []

    def work(_timeout: float) -> None:
        closing = lifecycle.closing
        began.set()
        release.wait(30)
        if closing:
            time.sleep(0.3)
        ended.append(closing)

    lifecycle.on_flush("slow", work)
    assert lifecycle.flush(0.0) is False
    assert began.wait(10)
    threading.Timer(0.2, release.set).start()
    assert lifecycle.close(20.0) is True
    assert ended == [False, True]


def test_requests_behind_a_slow_run_are_served_by_one_run() -> None:
    lifecycle = Lifecycle()
    began, release = threading.Event(), threading.Event()
    timeouts: list[float] = []

    def work(timeout: float) -> None:
        timeouts.append(timeout)
        began.set()
        release.wait(30)

    lifecycle.on_flush("slow", work)
    lifecycle.flush(0.0)
    assert began.wait(10)
    for _ in range(20):
        assert lifecycle.flush(0.001) is False
    threading.Timer(0.2, release.set).start()
    assert lifecycle.flush(20.0) is True
    assert timeouts == [0.0, 20.0]


def test_after_the_last_flush_nothing_is_flushed_again() -> None:
    lifecycle = Lifecycle()
    runs: list[bool] = []
    lifecycle.on_flush("one", lambda _timeout: runs.append(lifecycle.closing))
    assert lifecycle.close(10.0) is True
    assert lifecycle.close(10.0) is True
    assert lifecycle.flush(10.0) is True
    assert runs == [True]


def test_closing_takes_away_what_was_put_in_place_latest_first() -> None:
    lifecycle = Lifecycle()
    order: list[int] = []
    lifecycle.on_close(lambda: order.append(1))
    lifecycle.on_close(lambda: order.append(2))
    lifecycle.close(1.0)
    lifecycle.close(1.0)
    assert order == [2, 1]
    assert lifecycle.closing
