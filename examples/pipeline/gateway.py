"""The API in front: takes a request, writes it down, queues the work, answers at once."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from starlette.concurrency import run_in_threadpool

import otel_kit
import settings
from models import Base, Note, wait_for_the_lock
from tasks import remind, transcribe

otel_kit.configure("gateway")

logging.basicConfig(level=logging.INFO)
log = logging.getLogger("gateway")
engine = create_async_engine(settings.ASYNC_DATABASE_URL)
sessions = async_sessionmaker(engine, expire_on_commit=False)
wait_for_the_lock(engine.sync_engine)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(title="Voice notes", lifespan=lifespan)


class NewNote(BaseModel):
    chat: str
    recording: str


class NewReminder(BaseModel):
    chat: str
    text: str
    seconds: float = Field(ge=0, le=86_400)


@app.post("/notes", status_code=202)
async def add_note(new: NewNote) -> dict[str, Any]:
    async with sessions() as session:
        note = Note(chat=new.chat, recording=new.recording)
        session.add(note)
        await session.commit()
    await run_in_threadpool(transcribe.delay, note.id)
    log.info("note %s accepted", note.id, extra={"chat": new.chat})
    return {"id": note.id, "state": note.state}


@app.get("/notes/{note_id}")
async def get_note(note_id: int) -> dict[str, Any]:
    async with sessions() as session:
        note = await session.get(Note, note_id)
    if note is None:
        raise HTTPException(404, f"there is no note {note_id}")
    return {"id": note.id, "state": note.state, "transcript": note.transcript}


@app.post("/reminders", status_code=202)
async def add_reminder(new: NewReminder) -> dict[str, Any]:
    await run_in_threadpool(remind.apply_async, (new.chat, new.text), countdown=new.seconds)
    return {"seconds": new.seconds}


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}
