"""Names that clients make up: bounded on metrics and span names, and the overflow is said."""

from __future__ import annotations

import logging

import pytest

from otel_kit.jobs.names import OTHER, Names, Pairs


def test_the_first_names_keep_their_own() -> None:
    names = Names("job.name", 2)
    assert [names.bounded(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", OTHER, "a", OTHER]
    assert names.overflow() == ("job.name", 2)


def test_the_first_overflow_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    names = Names("job.name", 1)
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            names.bounded(str(number))
    (record,) = caplog.records
    assert "more than 1 different values of job.name" in record.getMessage()
    assert "OTEL_KIT_NAME_LIMIT" in record.getMessage()


def test_a_long_name_is_cut() -> None:
    assert len(Names("job.name", 1).bounded("x" * 100_000)) <= 200


def test_combinations_are_bounded_too() -> None:
    names, queues = Names("job.name", 10), Names("queue", 10)
    pairs = Pairs(names, queues)
    seen = {pairs.bounded(f"job{n}", f"queue{q}") for n in range(100) for q in range(100)}
    assert len(seen) <= 2 * 11 + 1


def test_a_child_counts_its_own_overflow() -> None:
    names = Names("job.name", 1)
    names.bounded("a")
    names.bounded("b")
    names.reset_after_fork()
    assert names.overflow() == ("job.name", 0)
    assert names.bounded("a") == "a"
