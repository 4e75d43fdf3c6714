"""What is too long is cut, says so, and keeps what tells most."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_kit.telemetry.limits import MAX_NESTED, MAX_TEXT, Allowance, cut


def test_a_short_text_stays_the_very_same_object() -> None:
    text = "x" * MAX_TEXT
    assert cut(text) is text
    assert cut(text, keep="both") is text


def test_the_beginning_is_kept_and_the_mark_says_how_much_is_missing() -> None:
    short = cut("word " * 100, 100)
    assert re.fullmatch(r"(word )*word\n\.\.\. \[cut \d+ characters\] \.\.\.", short)
    assert short.count("word") >= 5


def test_both_keeps_more_of_the_end_where_a_stack_trace_says_what_went_wrong() -> None:
    trace = "Traceback (most recent call last):\n" + "  File x, line 1\n" * 10_000 + "ValueError: boom\n"
    short = cut(trace, keep="both")
    head, _, tail = short.partition("... [cut ")
    assert head.startswith("Traceback (most recent call last):\n  File x, line 1\n")
    assert tail.endswith("line 1\nValueError: boom\n")
    assert len(tail) > 1.5 * len(head)
    # At line ends: no line is left in pieces.
    assert set(short.splitlines()[1:-1]) - {"  File x, line 1"} == {
        line for line in short.splitlines() if line.startswith("... [cut ")
    }


@pytest.mark.parametrize("keep", ["start", "both"])
@given(text=st.text(alphabet="ab \n\"',", max_size=400), times=st.integers(1, 20), limit=st.integers(64, 500))
def test_the_result_fits_counts_right_and_is_not_cut_again(keep: Any, text: str, times: int, limit: int) -> None:
    whole = text * times
    short = cut(whole, limit, keep)
    assert len(short) <= limit
    assert cut(short, limit, keep) is short
    if short is not whole:
        mark = re.search(r"\n\.\.\. \[cut (\d+) characters\] \.\.\.\n?", short)
        assert mark is not None
        assert len(short) - len(mark[0]) + int(mark[1]) == len(whole)
        assert whole.startswith(short[: mark.start()])
        assert whole.endswith(short[mark.end() :])


@pytest.mark.parametrize(("limit", "keep"), [(63, "start"), (-1, "both"), (100, "end")])
def test_what_is_not_accepted_is_named(limit: int, keep: Any) -> None:
    with pytest.raises(ValueError, match=r"(limit|keep)=.* is not accepted; accepted: "):
        cut("x", limit, keep)


def test_an_allowance_counts_items_and_the_characters_of_texts() -> None:
    allowance = Allowance(100)
    assert allowance.take(1)
    assert allowance.take("x" * 68)
    assert not allowance.take(1)
    # A text counts as what is kept of it.
    assert Allowance(MAX_NESTED).take("x" * 10_000_000)
