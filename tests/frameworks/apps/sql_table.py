"""The suite's jobs in a table of PostgreSQL, claimed with FOR UPDATE SKIP LOCKED. It is copied to ``app.py`` before it runs."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import otel_kit

otel_kit.configure()

import psycopg  # noqa: E402 - telemetry first
from psycopg.rows import namedtuple_row  # noqa: E402

from otel_kit.jobs import table  # noqa: E402

URL = os.environ["BROKER"]
QUEUE = "suite"
HEARTBEAT = 0.5
MAX_ATTEMPTS = {"retry_once": 2}

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id bigserial PRIMARY KEY,
    queue text NOT NULL DEFAULT 'suite',
    name text NOT NULL,
    payload text NOT NULL,
    priority integer NOT NULL DEFAULT 0,
    status text NOT NULL DEFAULT 'ready',
    attempt integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_at timestamptz,
    started_at timestamptz,
    heartbeat_at timestamptz,
    carrier text
);
CREATE INDEX IF NOT EXISTS jobs_status ON jobs (status, priority DESC, id) WHERE status IN ('ready', 'running', 'dead');
"""
CLAIM = """
UPDATE jobs SET status = 'running', started_at = clock_timestamp(), heartbeat_at = clock_timestamp()
WHERE id = (
    SELECT id FROM jobs WHERE status = 'ready' AND (run_at IS NULL OR run_at <= clock_timestamp())
    ORDER BY priority DESC, id FOR UPDATE SKIP LOCKED LIMIT 1
) RETURNING *
"""

_local = threading.local()


@contextmanager
def connected() -> Iterator[psycopg.Connection[Any]]:
    """This thread's connection, in a transaction."""
    if not hasattr(_local, "connection"):
        _local.connection = psycopg.connect(URL.format(""), row_factory=namedtuple_row)
    with _local.connection.transaction():
        yield _local.connection


def publish(
    name: str,
    *arguments: object,
    delay: float | None = None,
    priority: int | None = None,
    trigger: str | None = None,
    queue: str = QUEUE,
) -> None:
    """Hand a job to the table by its name."""
    run_at = None if delay is None else time.time() + delay
    sending = table.publish(name, queue=queue, run_at=run_at, system="postgresql", trigger=trigger)
    with sending as carrier, connected() as connection:
        inserted = connection.execute(
            "INSERT INTO jobs (queue, name, payload, priority, run_at, carrier)"
            " VALUES (%s, %s, %s, %s, to_timestamp(%s), %s) RETURNING id",
            (queue, name, json.dumps(arguments), priority or 0, run_at, carrier),
        ).fetchone()
        sending.identify(inserted.id)


def succeed(_attempt: int, number: int = 0) -> None:
    pass


def fail(_attempt: int) -> None:
    raise ZeroDivisionError("on purpose")


def retry_once(attempt: int) -> None:
    if attempt == 1:
        raise ConnectionError("not yet")


def slow(_attempt: int, seconds: float) -> None:
    time.sleep(seconds)


def die(_attempt: int) -> None:
    time.sleep(1)  # what it has said so far is on its way
    os.kill(os.getpid(), signal.SIGKILL)


def nested(_attempt: int) -> None:
    publish("succeed", 1)


def periodic(_attempt: int) -> None:
    pass


JOBS: dict[str, Callable[..., None]] = {
    job.__name__: job for job in (succeed, fail, retry_once, slow, die, nested, periodic)
}


def work_on(row: Any) -> None:
    """Run one claimed row, and say in the table how it went."""
    run = table.run(
        row.name, queue=row.queue, id=row.id, carrier=row.carrier, created_at=row.created_at, run_at=row.run_at,
        attempt=row.attempt, max_attempts=MAX_ATTEMPTS.get(row.name), system="postgresql",
    )  # fmt: skip
    try:
        with run:
            try:
                work, arguments = JOBS[row.name], json.loads(row.payload)
            except (KeyError, ValueError) as error:
                run.reject(error)
            else:
                work(row.attempt, *arguments)
    except Exception:
        pass
    settle(row, run)


def settle(row: Any, run: table.TableRun) -> None:
    """Write the outcome down."""
    with connected() as connection:
        if run.outcome == "retry":
            connection.execute(
                "UPDATE jobs SET status = 'ready', attempt = attempt + 1, carrier = %s,"
                " run_at = clock_timestamp() + interval '0.3 s' WHERE id = %s",
                (run.carrier, row.id),
            )
        else:
            status = "done" if run.outcome == "success" else "dead"
            connection.execute("UPDATE jobs SET status = %s WHERE id = %s", (status, row.id))


current: int | None = None


def keep_beating() -> None:
    """Say in the table that the worker lives, also while a job runs."""
    while True:
        if current is not None:
            with connected() as connection:
                connection.execute("UPDATE jobs SET heartbeat_at = clock_timestamp() WHERE id = %s", (current,))
        time.sleep(HEARTBEAT)


def keep_publishing() -> None:
    """The schedule of the periodic job."""
    while True:
        publish("periodic", trigger="schedule", queue="periodic")
        time.sleep(1.0)


def main() -> None:
    """Work until somebody stops it."""
    global current
    from sqlalchemy import create_engine

    from otel_kit.integrations.sqlalchemy_jobs import observe_table

    with connected() as connection:
        connection.execute(SCHEMA)
    loop = table.worker(QUEUE, slots=1, names=JOBS)
    observe_table(
        create_engine(URL.format("+psycopg")), "jobs", queue_column="queue", queues=[QUEUE], dead="dead",
        run_at="run_at", started_at="started_at", heartbeat_at="heartbeat_at", heartbeat_timeout=6 * HEARTBEAT,
        name_column="name", attempt="attempt", carrier="carrier",
    )  # fmt: skip
    threading.Thread(target=keep_beating, daemon=True).start()
    if os.environ.get("PERIODIC") == "1":
        threading.Thread(target=keep_publishing, daemon=True).start()
    print("ready", flush=True)
    while True:
        loop.beat()
        with connected() as connection:
            row = connection.execute(CLAIM).fetchone()
        if row is None:
            time.sleep(0.02)
            continue
        current = row.id
        work_on(row)
        current = None


if __name__ == "__main__":
    main()
