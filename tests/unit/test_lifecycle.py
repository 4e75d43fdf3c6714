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
    lifecycle.flush(0.5)
    assert finished.is_set()


def test_closing_takes_away_what_was_put_in_place_latest_first() -> None:
    lifecycle = Lifecycle()
    order: list[int] = []
    lifecycle.on_close(lambda: order.append(1))
    lifecycle.on_close(lambda: order.append(2))
    lifecycle.close(1.0)
    lifecycle.close(1.0)
    assert order == [2, 1]
    assert lifecycle.closing
