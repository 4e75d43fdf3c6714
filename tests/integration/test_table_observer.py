"""`observe_table` and `recover_rows` on real PostgreSQL and SQLite, with sync and async drivers."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    DateTime,
    Float,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    insert,
    select,
    text,
    update,
)  # fmt: skip
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from otel_kit.integrations.sqlalchemy_jobs import TableState, observe_table, recover_rows, recovery, statements
from otel_kit.integrations.sqlalchemy_jobs import observer as observing
from otel_kit.integrations.sqlalchemy_jobs.access import Access
from otel_kit.integrations.sqlalchemy_jobs.locks import lease_of
from otel_kit.integrations.sqlalchemy_jobs.silence import Losses
from otel_kit.jobs.queues import reporter
from otel_kit.testing import OtlpSink
from tests.integration.conftest import Programs, eventually

DRIVERS = ("postgresql+psycopg", "postgresql+asyncpg", "sqlite", "sqlite+aiosqlite")
NAME = "work.jobs"


@pytest.fixture(autouse=True)
def nobody_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here tables are read when a test says so."""
    monkeypatch.setattr(reporter, "enabled", False)


def _table(schema: str | None, moment: Any) -> Table:
    return Table(
        "jobs",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("queue", Text, server_default="mail"),
        Column("name", Text, server_default="send"),
        Column("status", Text, server_default="ready"),
        Column("attempt", Integer, server_default="1"),
        Column("created_at", moment),
        Column("run_at", moment),
        Column("started_at", moment),
        Column("heartbeat_at", moment),
        Column("worker", Text),
        Column("carrier", Text),
        schema=schema,
    )


class Queue:
    """A table of jobs, the application's engine for it, and a plain way into it."""

    def __init__(self, url: str, driver: str) -> None:
        self.driver = driver
        self.url = url
        self.app: Any = create_async_engine(url) if "async" in driver or "aio" in driver else create_engine(url)
        plain = url.replace("+asyncpg", "+psycopg").replace("+aiosqlite", "")
        self.plain = create_engine(plain)
        self.make(DateTime(timezone=True))

    def make(self, moment: Any) -> None:
        """Make the table, empty, with this type for its times."""
        self.table = _table("work" if self.driver.startswith("postgresql") else None, moment)
        with self.plain.begin() as connection:
            if self.driver.startswith("postgresql"):
                connection.execute(text("DROP SCHEMA IF EXISTS work CASCADE"))
                connection.execute(text("CREATE SCHEMA work"))
        self.table.metadata.drop_all(self.plain)
        self.table.metadata.create_all(self.plain)

    def add(self, count: int = 1, **values: Any) -> None:
        """Rows; those without a time of their own are of now."""
        row = {"created_at": self.at(0), **values}
        with self.plain.begin() as connection:
            connection.execute(insert(self.table), [row] * count)

    def at(self, ago: float) -> Any:
        """So many seconds ago, as the columns take it."""
        moment = datetime.now(UTC) - timedelta(seconds=ago)
        kind: Any = self.table.c.created_at.type
        if isinstance(kind, Float):
            return moment.timestamp()
        if isinstance(kind, Text):
            return moment.isoformat()
        return moment if kind.timezone and not self.driver.startswith("sqlite") else moment.replace(tzinfo=None)

    def statuses(self) -> list[str]:
        with self.plain.connect() as connection:
            return list(connection.execute(select(self.table.c.status).order_by(self.table.c.id)).scalars())

    def observe(self, **settings: Any) -> Any:
        described = {"dead": "dead", "run_at": "run_at", "started_at": "started_at", **settings}
        if "queue_column" not in described:
            described.setdefault("queue", "mail")
        return observe_table(self.app, described.pop("table", self.table), **described)

    def recover(self, **settings: Any) -> Any:
        columns = {
            "heartbeat_at": "heartbeat_at",
            "started_at": "started_at",
            "name_column": "name",
            "attempt": "attempt",
        }
        return recover_rows(self.app, self.table, **{**columns, "heartbeat_timeout": 30, **settings})


@pytest.fixture(params=DRIVERS)
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queue]:
    """An empty table behind each driver."""
    yield from _queue(request.param, request, tmp_path)


@pytest.fixture
def postgres(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queue]:
    yield from _queue("postgresql+psycopg", request, tmp_path)


@pytest.fixture(params=["postgresql+psycopg", "sqlite"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queue]:
    """An empty table in each database."""
    yield from _queue(request.param, request, tmp_path)


def _queue(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queue]:
    if driver.startswith("postgresql"):
        url = str(request.getfixturevalue("postgres_url")).format(driver.removeprefix("postgresql"))
    else:
        url = f"{driver}:///{tmp_path}/jobs.db"
    made = Queue(url, driver)
    yield made
    made.plain.dispose()


def test_rows_are_counted_by_state_with_zeros_for_what_is_not_there(queue: Queue) -> None:
    observer = queue.observe()
    assert observer.read() == {"mail": TableState(ready=0)}
    queue.add(3)
    queue.add(2, run_at=queue.at(-600))
    queue.add(1, run_at=queue.at(60))
    queue.add(4, status="running", started_at=queue.at(5))
    queue.add(5, status="dead")
    queue.add(6, status="done")
    found = observer.read()["mail"]
    assert (found.ready, found.scheduled, found.reserved, found.dead) == (4, 2, 4, 5)
    assert (found.overdue, found.silent, found.stuck) == (0, 0, 0)
    assert found.oldest_started_at == pytest.approx(time.time() - 5, abs=0.5)


MOMENTS = {
    "aware": DateTime(timezone=True), "naive": DateTime(timezone=False), "number": Float(53), "text": Text(),
}  # fmt: skip


@pytest.mark.parametrize(
    ("either", "moment"),
    [
        (driver, kind)
        for driver in ("postgresql+psycopg", "sqlite")
        for kind in MOMENTS
        if (driver, kind) != ("postgresql+psycopg", "text")
    ],
    indirect=["either"],
)
def test_the_oldest_was_ready_at_the_later_of_its_times(either: Queue, moment: str) -> None:
    either.make(MOMENTS[moment])
    observer = either.observe(queue="mail")
    assert observer.read()["mail"].oldest_ready_at is None
    either.add(created_at=either.at(50), run_at=either.at(20))
    either.add(created_at=either.at(10), run_at=either.at(30))
    either.add(created_at=either.at(900), run_at=either.at(-900))
    state = observer.read()["mail"]
    assert state.oldest_ready_at == pytest.approx(time.time() - 20, abs=0.05 + 0.5)
    assert (state.ready, state.scheduled) == (2, 1)


def test_a_table_can_be_named_and_its_queues_stand_in_a_column(queue: Queue) -> None:
    named = "work.jobs" if queue.driver.startswith("postgresql") else "jobs"
    observer = queue.observe(table=named, queue_column="queue", queues=["mail", "empty"])
    queue.add(2)
    queue.add(1, queue="found")
    assert {name: state.ready for name, state in observer.read().items()} == {"mail": 2, "empty": 0, "found": 1}


def test_a_queue_that_was_found_goes_on_with_its_zeros(either: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    observer = either.observe(queue_column="queue", queues=["mail"])
    either.add(1, queue="found")
    assert observer.state("found").ready == 1
    with either.plain.begin() as connection:
        connection.execute(either.table.delete())
    assert observer.read()["found"] == TableState(ready=0)


def test_counting_ends_at_a_limit_and_says_so_once(either: Queue, caplog: pytest.LogCaptureFixture) -> None:
    observer = either.observe(most=10)
    either.add(25)
    either.add(9, run_at=either.at(-600))
    for _ in range(2):
        state = observer.read()["mail"]
        assert (state.ready, state.scheduled) == (10, 9)
    assert [r.getMessage() for r in caplog.records if "has 10 ready rows or more" in r.getMessage()] == [
        caplog.records[0].getMessage()
    ]


def test_statuses_may_be_numbers_and_columns_expressions(either: Queue) -> None:
    table = either.table
    either.add(2, attempt=0)
    either.add(1, attempt=5)
    observer = either.observe(
        status="attempt", ready=0, running=(1, 2), dead=(), queue_column=table.c.queue + "!", queues=["x"]
    )
    assert observer.read()["mail!"].ready == 2


def test_running_rows_are_overdue_by_their_start_and_silent_by_their_heartbeat(queue: Queue) -> None:
    observer = queue.observe(heartbeat_at="heartbeat_at", heartbeat_timeout=10, max_runtime=60)
    queue.add(1, status="running", started_at=queue.at(5), heartbeat_at=queue.at(1))
    queue.add(2, status="running", started_at=queue.at(90), heartbeat_at=queue.at(1))
    queue.add(3, status="running", started_at=queue.at(90), heartbeat_at=queue.at(40))
    queue.add(1, status="running", started_at=queue.at(40), heartbeat_at=None)
    queue.add(1, status="running", started_at=queue.at(2), heartbeat_at=None)
    state = observer.read()["mail"]
    assert (state.reserved, state.overdue, state.silent, state.stuck) == (8, 2, 4, 6)


def test_the_applications_pool_is_not_touched_and_its_way_of_connecting_is_used(tmp_path: Path) -> None:
    import sqlite3

    opened: list[int] = []

    def connect() -> sqlite3.Connection:
        opened.append(threading.get_ident())
        return sqlite3.connect(tmp_path / "elsewhere.db", check_same_thread=False)

    engine = create_engine(f"sqlite:///{tmp_path}/nowhere.db", creator=connect)
    taken: list[object] = []
    event.listen(engine, "connect", lambda connection, _record: taken.append(connection))
    table = _table(None, DateTime())
    table.metadata.create_all(engine)
    before = len(taken)
    observe_table(engine, table, queue="mail").read()
    assert len(taken) == before, "a connection of the pool"
    assert len(opened) == before + 1
    assert opened[-1] != threading.get_ident(), "on the caller's thread"
    assert not (tmp_path / "nowhere.db").exists()
    engine.dispose()


def test_our_own_connections_are_closed_after_use(postgres: Queue) -> None:
    observer = postgres.observe(lease=False)
    for _ in range(5):
        observer.read()

    def sessions() -> int:
        count = text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
        with postgres.plain.connect() as connection:
            return int(connection.execute(count).scalar_one())

    eventually(lambda: sessions() == 1, 5)


def test_reading_changes_nothing_and_cannot(queue: Queue) -> None:
    queue.add(1)
    access = Access(queue.app, 2.0)
    with pytest.raises(DBAPIError, match=r"read.?only"):
        access.read(lambda connection: connection.execute(update(queue.table).values(status="gone")))
    assert queue.statuses() == ["ready"]


def test_a_table_that_is_locked_costs_the_timeout_and_not_more(postgres: Queue) -> None:
    observer = postgres.observe(timeout=0.5, lease=False)
    with postgres.plain.begin() as connection:
        connection.execute(text("LOCK TABLE work.jobs IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        with pytest.raises(DBAPIError, match="timeout"):
            observer.read()
        assert time.monotonic() - began < 3
    assert observer.read()["mail"].ready == 0


def test_an_sqlite_statement_is_interrupted_at_the_timeout(tmp_path: Path) -> None:
    access = Access(create_engine(f"sqlite:///{tmp_path}/jobs.db"), 0.3)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    began = time.monotonic()
    with pytest.raises(DBAPIError, match="interrupted"):
        access.read(lambda connection: connection.execute(text(endless)).scalar())
    assert time.monotonic() - began < 3


def test_a_partial_index_over_the_open_rows_serves_the_reading(postgres: Queue) -> None:
    with postgres.plain.begin() as connection:
        connection.execute(text("INSERT INTO work.jobs (status) SELECT 'done' FROM generate_series(1, 20000)"))
        connection.execute(
            text(
                "CREATE INDEX jobs_open ON work.jobs (status, queue, run_at) WHERE status IN ('ready', 'running', 'dead')"
            )
        )
    postgres.add(50)
    postgres.add(50, status="running")
    observer = postgres.observe(heartbeat_at="heartbeat_at", heartbeat_timeout=9, max_runtime=9)
    reading = statements._depth(observer._layout.bind(postgres.table), "postgresql", 1000)
    spelled = reading.compile(postgres.plain, compile_kwargs={"literal_binds": True})
    with postgres.plain.begin() as connection:
        connection.execute(text("ANALYZE work.jobs"))
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {spelled}".replace("%", "%%")).scalars())
    assert plan.count("jobs_open") == 4, plan
    assert "Seq Scan" not in plan


def test_a_connect_that_hangs_holds_up_nobody_and_is_not_repeated(tmp_path: Path) -> None:
    let_go = threading.Event()
    asked: list[int] = []

    def connect() -> Any:
        asked.append(1)
        let_go.wait(30)
        raise OSError("never")

    observer = observe_table(
        create_engine(f"sqlite:///{tmp_path}/jobs.db", creator=connect),
        _table(None, DateTime()),
        queue="mail",
        timeout=0.1,
    )
    try:
        with pytest.raises(TimeoutError, match="has not answered within"):
            observer.read()
        with pytest.raises(TimeoutError, match="has not answered the question before"):
            observer.read()
        assert len(asked) == 1
    finally:
        let_go.set()


def test_callers_that_read_at_the_same_time_wait_for_each_other(queue: Queue) -> None:
    observer, found = queue.observe(), []
    readers = [threading.Thread(target=lambda: found.append(observer.read()["mail"].ready)) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert found == [0, 0, 0, 0]


def test_queues_of_a_table_share_a_reading_and_its_failure(either: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"q{number}" for number in range(50)]
    observer = either.observe(queue_column="queue", queues=names)
    either.add(1, queue="q7")
    readings: list[int] = []
    look = observer.read
    monkeypatch.setattr(observer, "read", lambda: (readings.append(1), look())[1])
    assert [observer.state(name).ready for name in names] == [int(name == "q7") for name in names]
    named = "jobs" if either.driver == "sqlite" else "work.jobs"
    with either.plain.begin() as connection:
        connection.execute(text(f"ALTER TABLE {named} RENAME TO away"))
    assert len(readings) == 1
    observer._read_at = float("-inf")
    for name in names:
        with pytest.raises(DBAPIError):
            observer.state(name)
    assert len(readings) == 2


LEASE = """
import os, sys, time
import otel_kit
otel_kit.configure("holder")
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from otel_kit.integrations.sqlalchemy_jobs import observer as observing
from otel_kit.integrations.sqlalchemy_jobs.access import Access
from otel_kit.integrations.sqlalchemy_jobs.locks import lease_of
from otel_kit.integrations.sqlalchemy_jobs.silence import Losses
url = os.environ["URL"]
made = (create_async_engine if "+a" in url else create_engine)(url)
lease = lease_of(Access(made, 2.0))
print("held" if lease.hold("jobs", "t", 1.0) else "not held", flush=True)
if os.environ.get("FORK") and os.fork() == 0:
    print("child", os.getpid(), flush=True)
    time.sleep(60)
while True:
    time.sleep(0.1)
    assert lease.hold("jobs", "t", 1.0)
"""


def _lease(queue: Queue) -> Any:
    return lease_of(Access(queue.app, 2.0))


def _holder(queue: Queue, programs: Programs, **environment: str) -> Any:
    programs.write("lease", LEASE)
    holder = programs.start(sys.executable, "lease.py", URL=queue.url, **environment)
    eventually(lambda: "held" in programs.output(holder), 30)
    assert "not held" not in programs.output(holder)
    return holder


def test_one_process_holds_the_lease_until_it_is_killed(queue: Queue, programs: Programs) -> None:
    holder, ours = _holder(queue, programs), _lease(queue)
    assert not ours.hold("jobs", "u", 1.0)
    assert ours.hold("other jobs", "u", 1.0)
    holder.kill()
    holder.wait(10)
    eventually(lambda: ours.hold("jobs", "u", 1.0), 10)
    assert ours.hold("jobs", "u", 1.0)
    ours.release()


def test_a_forked_child_does_not_keep_the_lease_of_a_dead_parent(queue: Queue, programs: Programs) -> None:
    holder, ours = _holder(queue, programs, FORK="1"), _lease(queue)
    eventually(lambda: "child" in programs.output(holder), 10)
    child = int(programs.output(holder).split("child")[1].split()[0])
    try:
        assert not ours.hold("jobs", "u", 1.0)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10)
        eventually(lambda: ours.hold("jobs", "u", 1.0), 10)
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)
        ours.release()


def test_a_lease_whose_session_was_ended_is_taken_anew(postgres: Queue) -> None:
    ours = _lease(postgres)
    assert ours.hold("jobs", "u", 1.0)
    with postgres.plain.begin() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'otel-kit'")
        )
    with pytest.raises(DBAPIError):
        ours.hold("jobs", "u", 1.0)
    assert ours.hold("jobs", "u", 1.0)
    ours.release()


def test_a_lease_holder_has_no_transaction_open(postgres: Queue) -> None:
    ours = _lease(postgres)
    ours.hold("jobs", "u", 1.0)
    with postgres.plain.connect() as connection:
        state = connection.execute(text("SELECT state FROM pg_stat_activity WHERE application_name = 'otel-kit'"))
        assert list(state.scalars()) == ["idle"]
    ours.release()


def test_a_dry_recovery_names_the_rows_and_changes_nothing(queue: Queue) -> None:
    queue.add(1, status="running", heartbeat_at=queue.at(90), attempt=2)
    queue.add(1, status="running", heartbeat_at=queue.at(1))
    (row,) = queue.recover()
    assert (row.id, row.name, row.attempt) == (1, "send", 2)
    assert row.silent_for == pytest.approx(90, abs=2)
    assert queue.statuses() == ["running", "running"]


def test_a_recovery_sets_back_silent_rows_only(queue: Queue) -> None:
    queue.add(1, status="running", heartbeat_at=queue.at(90), worker="gone")
    queue.add(1, status="running", heartbeat_at=queue.at(1), started_at=queue.at(9999))
    queue.add(1, status="done", heartbeat_at=queue.at(90))
    queue.add(1, status="running", started_at=queue.at(90))
    queue.add(1, status="running")
    recovered = queue.recover(dry_run=False, also_set={"worker": None})
    assert sorted(row.id for row in recovered) == [1, 4]
    assert queue.statuses() == ["ready", "running", "done", "ready", "running"]
    with queue.plain.connect() as connection:
        assert connection.execute(select(queue.table.c.worker).where(queue.table.c.id == 1)).scalar() is None
    assert queue.recover(dry_run=False) == []


def test_a_recovery_stops_at_its_limit(either: Queue) -> None:
    either.add(5, status="running", heartbeat_at=either.at(90))
    assert len(either.recover(dry_run=False, limit=2)) == 2
    assert either.statuses().count("ready") == 2


def test_a_row_whose_heartbeat_comes_back_meanwhile_is_not_recovered(
    either: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    either.add(2, status="running", heartbeat_at=either.at(90))
    look = statements.silent_rows

    def look_then_beat(*arguments: Any, **options: Any) -> Any:
        # Without the locks, which SQLite has not: what is left is the condition in the UPDATE itself.
        found = look(*arguments, **{**options, "lock": False})
        with either.plain.begin() as connection:
            connection.execute(update(either.table).where(either.table.c.id == 1).values(heartbeat_at=either.at(0)))
        return found

    monkeypatch.setattr(recovery.statements, "silent_rows", look_then_beat)
    assert [row.id for row in either.recover(dry_run=False)] == [2]
    assert either.statuses() == ["running", "ready"]


def test_a_row_that_its_worker_has_locked_is_passed_over(postgres: Queue) -> None:
    postgres.add(2, status="running", heartbeat_at=postgres.at(90))
    with postgres.plain.begin() as worker:
        worker.execute(select(postgres.table).where(postgres.table.c.id == 1).with_for_update())
        assert [row.id for row in postgres.recover(dry_run=False, timeout=2)] == [2]
    assert postgres.statuses() == ["running", "ready"]


def test_a_host_whose_clock_is_ahead_recovers_nobody(either: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    either.add(1, status="running", heartbeat_at=either.at(1))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 600)
    assert either.recover(dry_run=False) == []


def test_a_host_whose_clock_is_behind_recovers_nobody_that_it_has_seen_lately(
    either: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its workers write heartbeats by the same clock: to the database they look old, and are not.
    either.add(1, status="running", heartbeat_at=either.at(600))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 599)
    assert either.recover(dry_run=False) == []


WATCHER = """
import os, time
import otel_kit
otel_kit.configure("watcher")
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from otel_kit.integrations.sqlalchemy_jobs import observe_table, recover_rows
url = os.environ["URL"]
engine = (create_async_engine if "+a" in url else create_engine)(url)
columns = dict(queue="mail", started_at="started_at", heartbeat_at="heartbeat_at", heartbeat_timeout=5.0,
               name_column="name", attempt="attempt", carrier="carrier")
observe_table(engine, os.environ["TABLE"], dead="dead", run_at="run_at", max_runtime=60, **columns)
print("watching", flush=True)
if os.environ.get("QUERY"):
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
if os.environ.get("RECOVER"):
    time.sleep(2)
    print("recovered", [row.id for row in recover_rows(engine, os.environ["TABLE"], dry_run=False, **columns)], flush=True)
time.sleep(60)
"""


def _watch(queue: Queue, programs: Programs, **environment: str) -> Any:
    programs.write("watcher", WATCHER)
    named = "work.jobs" if queue.driver.startswith("postgresql") else "jobs"
    watcher = programs.start(sys.executable, "watcher.py", URL=queue.url, TABLE=named, **environment)
    eventually(lambda: "watching" in programs.output(watcher), 60)
    return watcher


def _depths(sink: OtlpSink, state: str) -> list[Any]:
    return [p for p in list(sink.points) if p.name == "job.queue.depth" and p.attributes["job.state"] == state]


def test_depth_and_age_are_reported_under_the_queues_own_identity(
    queue: Queue, programs: Programs, sink: OtlpSink
) -> None:
    queue.add(2, created_at=queue.at(30))
    queue.add(1, status="running", started_at=queue.at(90), heartbeat_at=queue.at(0))
    _watch(queue, programs)
    eventually(lambda: _depths(sink, "dead"), 30)
    eventually(lambda: _depths(sink, "ready")[-1].value == 2, 30)
    assert {p.resource["service.instance.id"] for p in _depths(sink, "ready")} == {
        f"queue:{queue.app.dialect.name}/mail"
    }
    assert (_depths(sink, "scheduled")[-1].value, _depths(sink, "dead")[-1].value) == (0, 0)
    assert (_depths(sink, "reserved")[-1].value, _depths(sink, "stuck")[-1].value) == (1, 1)
    (*_, age) = [p for p in list(sink.points) if p.name == "job.queue.oldest_age"]
    assert 29 < age.value < 90


def test_of_two_processes_one_reports_and_the_other_takes_over(
    either: Queue, programs: Programs, sink: OtlpSink
) -> None:
    first = _watch(either, programs)
    eventually(lambda: _depths(sink, "ready"), 30)
    second = _watch(either, programs)
    alone, began = len(_depths(sink, "ready")), time.monotonic()
    eventually(lambda: time.monotonic() - began > 4, 10)
    # One of them reads every half second; two would make twice as many points.
    assert len(_depths(sink, "ready")) - alone <= (time.monotonic() - began) / 0.5 + 2
    first.kill()
    first.wait(10)
    before = len(_depths(sink, "ready"))
    eventually(lambda: len(_depths(sink, "ready")) > before + 1, 30)
    assert second.poll() is None


def test_our_own_reading_makes_no_spans(either: Queue, programs: Programs, sink: OtlpSink) -> None:
    _watch(either, programs, QUERY="1")
    eventually(lambda: len(_depths(sink, "ready")) > 3, 30)
    assert [span.attributes.get("db.query.text", span.name) for span in sink.spans if "SELECT" in span.name] == [
        "SELECT 1"
    ]
    assert {span.name.split()[0] for span in sink.spans} <= {"SELECT", "connect"}
    assert len([span for span in sink.spans if span.name == "connect"]) <= 1


def test_a_row_whose_worker_fell_silent_is_lost_once(queue: Queue, programs: Programs, sink: OtlpSink) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    carrier = f'{{"traceparent": "00-{trace_id}-b7ad6b7169203331-01"}}'
    queue.add(1, status="running", started_at=queue.at(20), heartbeat_at=queue.at(10), carrier=carrier)
    queue.add(1, status="running", started_at=queue.at(9999), heartbeat_at=queue.at(9000), name="long.gone")
    queue.add(1, status="running", started_at=queue.at(20), heartbeat_at=queue.at(-3600), name="alive")
    _watch(queue, programs)
    eventually(lambda: [s for s in sink.spans if s.attributes.get("job.outcome") == "lost"], 30)
    turns = len(_depths(sink, "ready"))
    eventually(lambda: len(_depths(sink, "ready")) > turns + 3, 30)
    (span,) = [s for s in sink.spans if s.attributes.get("job.outcome") == "lost"]
    (record,) = [r for r in sink.logs if r.event_name == "job.lost"]
    assert (span.status, span.trace_id, span.parent_id) == ("ERROR", trace_id, "b7ad6b7169203331")
    assert (span.attributes["job.id"], span.attributes["job.name"]) == ("1", "send")
    assert span.start == pytest.approx(time.time() - 20, abs=30)
    assert (record.trace_id, record.span_id, record.severity) == (span.trace_id, span.span_id, "ERROR")
    points = [p for p in list(sink.points) if p.name == "job.executions" and p.attributes["job.outcome"] == "lost"]
    assert {p.attributes["job.name"] for p in points} == {"send"}
    assert points[-1].value == 1


def test_more_silent_rows_than_one_reading_takes_are_all_lost_once(
    either: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observing, "_MOST_SILENT", 4)
    lost: list[str] = []
    monkeypatch.setattr(Losses, "_record", lambda _self, row: lost.append(str(row.id)))
    for age in range(10):
        either.add(1, status="running", heartbeat_at=either.at(100 + age))
    observer = either.observe(heartbeat_at="heartbeat_at", heartbeat_timeout=30)
    for _ in range(5):
        observer._read_at = float("-inf")
        observer.state("mail")
    assert sorted(lost, key=int) == [str(number) for number in range(1, 11)]


def test_a_recovery_is_audited_and_counted(either: Queue, programs: Programs, sink: OtlpSink) -> None:
    either.add(1, status="running", heartbeat_at=either.at(90))
    watcher = _watch(either, programs, RECOVER="1")
    eventually(lambda: "recovered [1]" in programs.output(watcher), 30)
    eventually(lambda: [r for r in sink.logs if r.attributes.get("audit.action") == "job.recovered"], 30)
    (record,) = [r for r in sink.logs if r.attributes.get("audit.action") == "job.recovered"]
    assert (record.attributes["job_id"], record.attributes["job_name"]) == ("1", "send")
    assert record.attributes["log.category"] == "audit"
    eventually(lambda: [p for p in list(sink.points) if p.name == "job.recovered" and p.value == 1], 30)


def test_a_database_that_is_away_is_said_once_and_reported_again_when_it_is_back(
    programs: Programs, sink: OtlpSink, tmp_path: Path
) -> None:
    queue = Queue(f"sqlite:///{tmp_path}/jobs.db", "sqlite")
    watcher = _watch(queue, programs)
    eventually(lambda: _depths(sink, "ready"), 30)
    with queue.plain.begin() as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO away"))
    eventually(lambda: "cannot be read" in programs.output(watcher), 30)
    before = len(_depths(sink, "ready"))
    with queue.plain.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO jobs"))
    eventually(lambda: len(_depths(sink, "ready")) > before, 30)
    assert programs.output(watcher).count("cannot be read") == 1
    queue.plain.dispose()


def test_the_example_sends_every_letter_in_a_trace_of_its_own(
    programs: Programs, sink: OtlpSink, postgres: Queue
) -> None:
    script = str(Path(__file__).parents[2] / "examples" / "sql_table" / "newsletter.py")
    database = {"DATABASE_URL": postgres.url}
    worker = programs.start(sys.executable, script, "work", **database)
    eventually(lambda: "waiting for letters" in programs.output(worker), 60)
    sender = programs.start(sys.executable, script, "subscribe", *["ada@example.org"] * 4, **database)
    assert sender.wait(60) == 0, programs.output(sender)

    def sent() -> set[str]:
        return {s.attributes["job.id"] for s in sink.spans if s.attributes.get("job.outcome") == "success"}

    eventually(lambda: len(sent()) == 4, 60)
    assert sent() == set(programs.output(sender).split())
    first = [s for s in sink.spans if s.kind == "CONSUMER" and s.attributes["job.attempt"] == 1]
    sends = {s.span_id for s in sink.spans if s.kind == "PRODUCER"}
    assert {run.parent_id for run in first} == sends
    assert not [
        s for s in sink.spans if s.name.startswith(("SELECT", "UPDATE")) and not s.parent_id and "letters" in s.name
    ]
    with postgres.plain.begin() as connection:
        connection.execute(text("DROP TABLE letters"))
