"""Jobs in a SQL table: what rows say, and what `publish`, `run` and `observe_table` accept."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, DateTime, Integer, MetaData, Table, Text, create_engine
from sqlalchemy.pool import NullPool

from otel_kit import catalogue
from otel_kit.integrations.sqlalchemy_jobs import observe_table, recover_rows
from otel_kit.jobs import table
from otel_kit.jobs.rows import carrier_text, headers_of, unix_seconds
from otel_kit.settings import ConfigurationError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HEADERS = {"traceparent": f"00-{7:032x}-{7:016x}-01", "baggage": "request.id=ü"}


@pytest.mark.parametrize(
    "stored",
    [
        carrier_text(HEADERS),
        carrier_text(HEADERS).encode(),
        memoryview(carrier_text(HEADERS).encode()),
        json.dumps(carrier_text(HEADERS)),  # a JSON column that was given text
        HEADERS,
    ],
)
def test_a_carrier_comes_back_from_a_text_a_binary_and_a_json_column(stored: object) -> None:
    assert headers_of(stored) == HEADERS


def test_a_carrier_is_one_line_of_ascii() -> None:
    text = carrier_text({"baggage": "a=ü\n\x00", "traceparent": "x"})
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.parametrize(
    "stored",
    [None, "", "{", "[]", "null", "7", 7, 1.5, "{" * 100_000, "[" * 100_000, '"' * 70_000, b"\xff\xfe", object(), [1]],
)
def test_garbage_in_a_carrier_column_is_no_carrier(stored: object) -> None:
    assert headers_of(stored) == {}
    table.run("j", queue="q", id=1, carrier=stored)


@given(st.one_of(st.text(), st.binary(), st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.none()))))
def test_no_carrier_raises(stored: object) -> None:
    assert table.run("j", queue="q", id=1, carrier=stored).job.id == "1"


def test_a_mapping_that_raises_is_no_carrier() -> None:
    class Hostile(Mapping[str, str]):
        def __getitem__(self, key: str) -> str:
            raise RuntimeError("no")

        def __iter__(self) -> Iterator[str]:
            return iter(["traceparent"])

        def __len__(self) -> int:
            return 1

    assert headers_of(Hostile()) == {}


@pytest.mark.parametrize(
    "given_time",
    [
        NOON,
        NOON.astimezone(timezone(timedelta(hours=-5))),
        NOON.timestamp(),
        int(NOON.timestamp()),
        Decimal(int(NOON.timestamp())),
        "2026-03-01T12:00:00Z",
        "2026-03-01 13:00:00+01:00",
    ],
)
def test_a_time_is_taken_as_a_datetime_a_number_or_text(given_time: Any) -> None:
    assert unix_seconds(given_time, "created_at") == NOON.timestamp()


@pytest.mark.parametrize("naive", [NOON.replace(tzinfo=None), "2026-03-01 12:00:00"])
def test_a_time_without_a_zone_is_refused_unless_somebody_names_the_zone(naive: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"created_at=2026-03-01T12:00:00 has no time zone.*timezone="):
        table.run("j", queue="q", id=1, created_at=naive)
    assert unix_seconds(naive, "created_at", UTC) == NOON.timestamp()
    assert unix_seconds(naive, "created_at", timezone(timedelta(hours=1))) == NOON.timestamp() - 3600


@pytest.mark.parametrize("wrong", ["yesterday", date(2026, 3, 1), True, object()])
def test_what_is_no_time_is_refused_by_name(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"run_at=.*is not a time; accepted"):
        table.run("j", queue="q", id=1, run_at=wrong)


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf"), 10**400])
def test_a_time_that_says_nothing_is_none(nothing: Any) -> None:
    assert unix_seconds(nothing, "run_at") is None


@given(st.datetimes(timezones=st.just(UTC)))
def test_any_datetime_is_taken(moment: datetime) -> None:
    unix_seconds(moment, "created_at")
    table.run("j", queue="q", id=1, created_at=moment, run_at=moment)


def _now() -> float:
    return datetime.now(UTC).timestamp()


def test_a_row_is_ready_at_the_later_of_its_two_times() -> None:
    now = _now()
    assert table.run("j", queue="q", id=1, created_at=now - 9, run_at=now - 4).job.ready_at == now - 4
    assert table.run("j", queue="q", id=1, created_at=now - 4, run_at=now - 9).job.ready_at == now - 4
    assert table.run("j", queue="q", id=1, created_at=now - 4).job.ready_at == now - 4
    assert table.run("j", queue="q", id=1).job.ready_at is None


def test_a_run_at_that_is_the_moment_of_its_creation_is_no_delay() -> None:
    now = _now()
    assert not table.run("j", queue="q", id=1, created_at=now, run_at=now + 0.01).job.delayed
    assert table.run("j", queue="q", id=1, created_at=now, run_at=now + 5).job.delayed


def test_a_time_of_long_ago_does_not_spoil_the_histogram() -> None:
    assert table.run("j", queue="q", id=1, created_at=0, run_at=0).job.ready_at is None


def test_an_id_is_anything_with_a_text() -> None:
    key = uuid.uuid4()
    assert table.run("j", queue="q", id=key).job.id == str(key)


@pytest.mark.parametrize(("parameter", "wrong"), [("attempt", "1"), ("attempt", None), ("max_attempts", 2.0)])
def test_an_attempt_that_is_no_number_is_refused_by_name(parameter: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"{parameter}=.*accepted: a whole number"):
        table.run("j", queue="q", id=1, **{parameter: wrong})


def test_a_trigger_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"trigger='cosmic'.*api, cron, schedule, retry, manual"):
        table.publish("j", queue="q", id=1, trigger="cosmic")


def test_the_next_attempts_carrier_keeps_the_publish_and_drops_what_is_not_ours() -> None:
    kept = table.run("j", queue="q", id=1, carrier={**HEADERS, "cookie": "secret"}).carrier
    headers = json.loads(kept)
    assert headers["traceparent"].split("-")[1:3] == HEADERS["traceparent"].split("-")[1:3]
    assert headers[catalogue.TRIGGER_HEADER] == "retry"
    assert "cookie" not in headers


def _jobs() -> Table:
    return Table(
        "jobs",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("status", Text),
        Column("created_at", DateTime(timezone=True)),
        Column("heartbeat_at", DateTime(timezone=True)),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "queue=, queue_column=: exactly one"),
        ({"queue": "q", "queue_column": "status"}, "queue=, queue_column=: exactly one"),
        ({"queue_column": "status"}, r"queues=\(\) is not accepted"),
        ({"queue": "q", "status": "state"}, r"status='state' is not a column of jobs; accepted: id, status"),
        ({"queue": "q", "ready": ()}, r"ready=\(\) is not accepted"),
        ({"queue": "q", "ready": 1.5}, "ready=1.5 is not accepted"),
        ({"queue": "q", "dead": [None]}, "dead=None is not accepted"),
        ({"queue": "q", "heartbeat_timeout": 5}, "heartbeat_timeout= needs heartbeat_at="),
        ({"queue": "q", "heartbeat_at": "heartbeat_at", "heartbeat_timeout": 0}, "heartbeat_timeout=0 is not accepted"),
        ({"queue": "q", "max_runtime": 5}, "max_runtime= needs started_at="),
        ({"queue": "q", "most": 0}, "most=0 is not accepted"),
        ({"queue": "q", "timeout": -1}, "timeout=-1 is not accepted"),
        ({"queue": "q", "lost_within": "1"}, "lost_within='1' is not accepted"),
        ({"queue": "q", "table": 7}, "table=7 is not accepted; accepted: a Table, a mapped class or a table's name"),
    ],
)
def test_a_setting_that_is_not_accepted_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/jobs.db")
    described = settings.pop("table", _jobs())
    with pytest.raises(ConfigurationError, match=message):
        observe_table(engine, described, **settings)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&cache=shared&uri=true"]
)
def test_a_database_in_one_connections_memory_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="SQLite database in memory is not accepted"):
        observe_table(create_engine(url, poolclass=NullPool), _jobs(), queue="q")


def test_a_recovery_asks_for_a_status_that_can_be_set(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/jobs.db")
    jobs = _jobs()
    jobs.metadata.create_all(engine)
    with pytest.raises(ConfigurationError, match="status= is an expression"):
        recover_rows(
            engine, jobs, status=jobs.c.status + "", heartbeat_at="heartbeat_at", heartbeat_timeout=5, dry_run=False
        )
    with pytest.raises(ConfigurationError, match="also_set='worker' is not a column"):
        recover_rows(engine, jobs, heartbeat_at="heartbeat_at", heartbeat_timeout=5, also_set={"worker": None})
    engine.dispose()
