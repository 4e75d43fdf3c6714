"""Letters that are sent from a table: `subscribe` puts rows into it, `work` takes them out, `recover` sets lost ones back."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import otel_kit

otel_kit.configure("newsletter")

from opentelemetry.instrumentation.utils import suppress_instrumentation  # noqa: E402 - telemetry first
from sqlalchemy import (  # noqa: E402
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    insert,
    select,
    text,
    update,
)

from otel_kit import jobs  # noqa: E402
from otel_kit.integrations.sqlalchemy_jobs import observe_table, recover_rows  # noqa: E402

engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///newsletter.db"))
QUEUE = {"queue": "letters", "system": engine.dialect.name}
MAX_ATTEMPTS = 3
HEARTBEAT = 5.0

OPEN = text("status IN ('ready', 'running', 'dead')")
letters = Table(
    "letters",
    MetaData(),
    Column("id", String(36), primary_key=True),
    Column("address", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("run_at", DateTime(timezone=True), nullable=False),
    Column("started_at", DateTime(timezone=True)),
    Column("heartbeat_at", DateTime(timezone=True)),
    Column("carrier", Text),
    # What is counted and what is claimed stands in this index; letters that were sent do not.
    Index("letters_open", "status", "run_at", postgresql_where=OPEN, sqlite_where=OPEN),
)


def now() -> datetime:
    return datetime.now(UTC)


def subscribe(address: str, delay: float = 0.0) -> str:
    """Have a letter sent, ``delay`` seconds from now."""
    key, run_at = str(uuid.uuid4()), now() + timedelta(seconds=delay)
    row = {"id": key, "address": address, "status": "ready", "attempt": 1, "created_at": now(), "run_at": run_at}
    with jobs.publish("send_letter", id=key, run_at=run_at, **QUEUE) as carrier, engine.begin() as database:
        database.execute(insert(letters).values(**row, carrier=carrier))
    return key


def send(address: str) -> None:
    """The work itself; every fifth letter comes back at first."""
    time.sleep(random.uniform(0.05, 0.3))
    if random.random() < 0.2:
        raise ConnectionError(f"the post office of {address.partition('@')[2]} is closed")


def claim() -> Any:
    """Take the row that is due first, or None."""
    due = (
        select(letters.c.id)
        .where(letters.c.status == "ready", letters.c.run_at <= now())
        .order_by(letters.c.run_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    taken = (
        update(letters)
        .where(letters.c.id == due.scalar_subquery())
        .values(status="running", started_at=now(), heartbeat_at=now())
        .returning(*letters.c)
    )
    # A loop that looks twice a second would be most of the spans.
    with suppress_instrumentation(), engine.begin() as database:
        return database.execute(taken).one_or_none()


def settle(key: str, **values: Any) -> None:
    with engine.begin() as database:
        database.execute(update(letters).where(letters.c.id == key).values(**values))


def work_on(row: Any) -> None:
    """Send one letter, and write down how that went."""
    run = jobs.run(
        "send_letter", id=row.id, carrier=row.carrier, created_at=row.created_at, run_at=row.run_at, timezone=UTC,
        attempt=row.attempt, max_attempts=MAX_ATTEMPTS, max_runtime=60, **QUEUE,
    )  # fmt: skip
    try:
        with run:
            send(row.address)
    except Exception:  # noqa: BLE001 - whatever it was, the letter is to be tried again
        if row.attempt == MAX_ATTEMPTS:
            settle(row.id, status="dead")
        else:
            pause = timedelta(seconds=2.0**row.attempt)
            settle(row.id, status="ready", attempt=row.attempt + 1, run_at=now() + pause, carrier=run.carrier)
    else:
        settle(row.id, status="sent")


class Heartbeat(threading.Thread):
    """Says in the table that the worker lives, also while a letter takes long."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.row: str | None = None

    def run(self) -> None:
        while True:
            if (row := self.row) is not None:
                with suppress_instrumentation():
                    settle(row, heartbeat_at=now())
            time.sleep(HEARTBEAT)


def work() -> None:
    """Send what is due, until somebody stops it."""
    loop, heartbeat = jobs.worker("letters", names=["send_letter"]), Heartbeat()
    observe_table(engine, letters, queue="letters", name="send_letter", dead="dead", max_runtime=60, **COLUMNS)
    heartbeat.start()
    print("waiting for letters", flush=True)
    while True:
        loop.beat()
        row = claim()
        if row is None:
            time.sleep(0.5)
            continue
        heartbeat.row = row.id
        work_on(row)
        heartbeat.row = None


COLUMNS = {
    "run_at": "run_at", "started_at": "started_at", "heartbeat_at": "heartbeat_at", "heartbeat_timeout": 4 * HEARTBEAT,
    "attempt": "attempt", "carrier": "carrier",
}  # fmt: skip


def recover(really: bool) -> None:
    """Set letters back whose worker is gone; without ``--really`` only say which."""
    columns = {name: value for name, value in COLUMNS.items() if name != "run_at"}
    for row in recover_rows(engine, letters, queue="letters", name="send_letter", dry_run=not really, **columns):
        print("set back" if really else "would set back", row.id, f"silent for {row.silent_for:.0f} s")


if __name__ == "__main__":
    letters.metadata.create_all(engine)
    match sys.argv[1:]:
        case ["subscribe", *addresses]:
            for each in addresses:
                print(subscribe(each))
        case ["work"]:
            work()
        case ["recover", *options]:
            recover("--really" in options)
        case _:
            sys.exit("usage: newsletter.py subscribe ADDRESS... | work | recover [--really]")
