"""The background jobs, as any Celery project has them. Nothing in this file knows about telemetry."""

import logging
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import httpx
import redis
from celery import Celery
from sqlalchemy import create_engine, delete, func, select
from sqlalchemy.orm import Session, sessionmaker

import settings
from models import Note, wait_for_the_lock

log = logging.getLogger("worker")

app = Celery("pipeline", broker=settings.REDIS_URL)
app.conf.update(
    task_default_queue="notes",
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)


class DamagedRecordingError(Exception):
    """The recording cannot be read, and trying again will not help."""


@app.task(name="transcribe", autoretry_for=(httpx.HTTPError,), max_retries=3, default_retry_delay=1)
def transcribe(note_id: int) -> None:
    """Fetch a voice note, put it into words, keep the words. A store that is down is asked again a second later."""
    with database() as session:
        note = session.get_one(Note, note_id)
        transcript = words().get(f"transcript:{note.recording}")
        if transcript is None:
            try:
                transcript = recognise(fetch(note.recording))
            except DamagedRecordingError:
                note.state = "failed"
                session.commit()
                raise
            words().set(f"transcript:{note.recording}", transcript, ex=3600)
        note.transcript = transcript
        note.state = "done"
        session.commit()
    log.info("note %s has %d words", note_id, len(transcript.split()))


@app.task(name="remind")
def remind(chat: str, text: str) -> None:
    log.info("%s: do not forget to %s", chat, text)


@app.task(name="nightly_report")
def nightly_report() -> None:
    with database() as session:
        rows = session.execute(select(Note.state, func.count()).group_by(Note.state))
        states = dict(rows.tuples().all())
    words().hset("report", mapping={"queued": 0, **states})
    log.info("notes by state: %s", states)


@app.task(name="forget_old_notes")
def forget_old_notes(days: int = 30) -> None:
    oldest = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=days)
    with database() as session:
        session.execute(delete(Note).where(Note.created_at < oldest))
        session.commit()


def fetch(recording: str) -> dict[str, Any]:
    link = f"/recordings/{recording}?token={settings.STORE_TOKEN}"
    log.info("fetching %s", link)
    return store().get(link).raise_for_status().json()


def recognise(recording: dict[str, Any]) -> str:
    """Stands in for a speech model: takes a hundredth of the time that the recording takes."""
    if recording["codec"] != "opus":
        raise DamagedRecordingError(f"cannot decode {recording['codec']!r}")
    time.sleep(recording["seconds"] / 100)
    return recording["speech"]


# Connections are made on first use, so that each process of the pool has its own.


@cache
def _sessions() -> sessionmaker[Session]:
    engine = create_engine(settings.DATABASE_URL)
    wait_for_the_lock(engine)
    return sessionmaker(engine)


def database() -> Session:
    return _sessions()()


@cache
def words() -> "redis.Redis":
    return redis.Redis.from_url(settings.REDIS_URL, decode_responses=True)


@cache
def store() -> httpx.Client:
    return httpx.Client(base_url=settings.DEPENDENCY_URL, timeout=5)
