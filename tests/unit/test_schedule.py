"""Schedules: what is taken, and when the next run is, also where clocks change."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_kit.jobs import schedule
from otel_kit.jobs.schedule import default_grace, parse

BERLIN = ZoneInfo("Europe/Berlin")


def runs(expression: str, zone: str, after: str, number: int) -> list[str]:
    """The next runs after a time in UTC, in UTC, both without seconds."""
    parsed, at = parse(expression, zone), datetime.fromisoformat(f"{after}Z").timestamp()
    found = []
    for _ in range(number):
        following = parsed.next_run(at)
        assert following is not None
        at = following
        found.append(datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M"))
    return found


@pytest.fixture(autouse=True)
def own_default() -> Iterator[None]:
    schedule.use_timezone(None)
    yield
    schedule.use_timezone(None)


@pytest.fixture
def host_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Lets a test choose the host's zone, as TZ does."""
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


def test_the_next_run_is_the_one_after_and_never_the_same() -> None:
    assert runs("0 2 * * *", "UTC", "2026-01-01T02:00", 2) == ["2026-01-02T02:00", "2026-01-03T02:00"]
    just_before = datetime(2026, 1, 1, 1, 59, 59, 999_999, UTC).timestamp()
    assert parse("0 2 * * *", "UTC").next_run(just_before) == datetime(2026, 1, 1, 2, tzinfo=UTC).timestamp()


def test_a_daily_run_keeps_its_clock_time_when_clocks_change() -> None:
    assert runs("0 9 * * *", "Europe/Berlin", "2026-03-28T00:00", 3) == [
        "2026-03-28T08:00",
        "2026-03-29T07:00",
        "2026-03-30T07:00",
    ]


def test_a_time_that_is_left_out_is_made_up_for_right_after_the_change() -> None:
    assert runs("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", 2) == ["2026-03-29T01:00", "2026-03-30T00:30"]


def test_a_time_that_comes_twice_is_taken_once() -> None:
    assert runs("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 2) == ["2026-10-25T00:30", "2026-10-26T01:30"]


def test_in_the_hour_that_comes_twice_a_run_that_was_is_not_the_next() -> None:
    # 02:31 for the second time: the 02:30 of the first is an hour past.
    assert runs("30 2 * * *", "Europe/Berlin", "2026-10-25T01:31", 1) == ["2026-10-26T01:30"]
    # 02:10 for the second time: so is it, although the clock has yet to show 02:30 again.
    assert runs("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10", 1) == ["2026-10-26T01:30"]


def test_what_runs_every_half_hour_does_so_across_both_changes() -> None:
    for day in ("2026-03-29", "2026-10-25"):
        at = datetime.fromisoformat(f"{day}T00:00Z").timestamp()
        parsed = parse("*/30 * * * *", "Europe/Berlin")
        times = [at]
        for _ in range(8):
            following = parsed.next_run(times[-1])
            assert following is not None
            times.append(following)
        assert {later - earlier for earlier, later in pairwise(times)} == {1800.0}


def test_aliases_six_fields_and_intervals_are_taken() -> None:
    assert runs("@hourly", "UTC", "2026-01-01T00:30", 1) == ["2026-01-01T01:00"]
    assert parse("*/2 * * * * *", "UTC").next_run(100.0) == 102.0
    assert parse(90).next_run(1000.5) == 1090.5
    assert parse(timedelta(minutes=1)).next_run(1000.0) == 1060.0


@pytest.mark.parametrize(
    "given_schedule",
    [
        "", "0 2 * *", "61 * * * *", "0 25 * * *", "@reboot", "every day", "0 0 31 2 *", "0 2 * * * * *", "\x00", "L",
        0, -5, float("nan"), float("inf"), 1e12, True, None, object, timedelta(0), b"0 2 * * *", "0 0 30 FEB *",
    ],
)  # fmt: skip
def test_what_is_no_schedule_is_refused_by_name_and_value(given_schedule: object) -> None:
    with pytest.raises(ValueError, match="schedule=") as refused:
        parse(given_schedule)
    assert repr(given_schedule) in str(refused.value)
    assert "accepted: a cron expression of five fields" in str(refused.value)


@given(st.text(max_size=40))
def test_any_text_is_a_schedule_or_refused(text: str) -> None:
    try:
        parsed = parse(text, "UTC")
    except ValueError:
        return
    assert parsed.next_run(0.0) is not None


@pytest.mark.parametrize("zone", ["", "Europe/Nowhere", "../etc/passwd", "Europe", 7, "\0"])
def test_what_is_no_time_zone_is_refused_by_name_and_value(zone: object) -> None:
    with pytest.raises(ValueError, match=r"timezone=.*accepted: a name of the IANA database"):
        parse("0 2 * * *", zone)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3", ":Europe/Berlin"])
def test_the_host_zone_is_the_default_in_whatever_form_it_is_set(host: str, host_zone: pytest.MonkeyPatch) -> None:
    host_zone.setenv("TZ", host)
    host_zone.delenv(schedule.TIMEZONE_VARIABLE, raising=False)
    time.tzset()
    parsed = parse("30 2 * * *")
    found, at = [], datetime(2026, 10, 24, 12, tzinfo=UTC).timestamp()
    for _ in range(2):
        following = parsed.next_run(at)
        assert following is not None
        at = following
        found.append(datetime.fromtimestamp(at, UTC).strftime("%m-%dT%H:%M"))
    assert found == ["10-25T00:30", "10-26T01:30"]
    at = datetime(2026, 10, 24, 23, 30, tzinfo=UTC).timestamp()
    half_hours = [at]
    for _ in range(6):
        following = parse("*/30 * * * *").next_run(half_hours[-1])
        assert following is not None
        half_hours.append(following)
    assert [later - earlier for earlier, later in pairwise(half_hours)] == [1800.0] * 6
    spring = parsed.next_run(datetime(2026, 3, 28, 12, tzinfo=UTC).timestamp())
    assert spring == datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()


def test_the_variable_sets_the_default_and_the_argument_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(schedule.TIMEZONE_VARIABLE, "Asia/Tokyo")
    noon = datetime(2026, 1, 1, 3, tzinfo=UTC).timestamp()  # 12:00 in Tokyo
    assert parse("0 12 * * *").next_run(noon - 1) == noon
    assert parse("0 12 * * *", "UTC").next_run(noon - 1) == noon + 9 * 3600
    schedule.use_timezone("UTC")
    assert parse("0 12 * * *").next_run(noon - 1) == noon + 9 * 3600


def test_a_schedule_follows_a_default_that_is_set_after_it_was_made() -> None:
    parsed = parse("0 12 * * *")
    schedule.use_timezone("Asia/Tokyo")
    noon = datetime(2026, 1, 1, 3, tzinfo=UTC).timestamp()
    assert parsed.next_run(noon - 1) == noon


def test_a_wrong_variable_is_named_and_the_host_zone_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(schedule.TIMEZONE_VARIABLE, "Mars/Olympus")
    assert schedule.default_zone() is schedule.LOCAL
    assert "OTEL_KIT_TIMEZONE" in caplog.text
    assert "Mars/Olympus" in caplog.text


def test_grace_covers_the_run_itself_or_half_the_time_to_the_one_after() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert default_grace(parse("0 2 * * *", "UTC"), 900, now) == 960
    assert default_grace(parse("0 2 * * *", "UTC"), None, now) == 3600
    assert default_grace(parse("*/20 * * * *", "UTC"), None, now) == 600
    assert default_grace(parse(5), None, now) == 60


def test_without_cronsim_the_error_says_what_to_install() -> None:
    script = "import sys; sys.modules['cronsim'] = None\nfrom otel_kit.jobs.schedule import parse\nparse(60)\nparse('0 2 * * *')"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=dict(os.environ), check=False
    ).stderr
    assert "ModuleNotFoundError" in told
    assert "pip install 'otel-kit[schedule]'" in told


def test_cronsim_is_not_loaded_before_somebody_needs_it() -> None:
    script = "import sys, otel_kit, otel_kit.jobs.decorator\nsys.exit('cronsim' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
