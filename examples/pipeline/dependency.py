"""The store that keeps the recordings: somebody else's service, sometimes slow, sometimes down.

A recording's name says how it behaves, so that a run can be repeated: `long-*` comes slowly, `flaky-*` is refused at the
first try, `broken-*` cannot be decoded. `PUT /weather` makes it worse for everybody.
"""

import asyncio
import logging
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

import otel_kit
import settings

otel_kit.configure("store")

logging.basicConfig(level=logging.INFO)
log = logging.getLogger("store")
app = FastAPI(title="Recordings")
refused: set[str] = set()


class Weather(BaseModel):
    delay: float = Field(default=0, ge=0, le=60, description="seconds that every answer takes")
    down: bool = False


weather = Weather()


@app.put("/weather")
async def change_weather(new: Weather) -> Weather:
    global weather
    weather = new
    log.warning("weather changed: %s", new)
    return weather


@app.get("/recordings/{name}")
async def get_recording(name: str, token: str) -> dict[str, Any]:
    if token != settings.STORE_TOKEN:
        raise HTTPException(403, "the link is not signed by us")
    long = name.startswith("long-")
    await asyncio.sleep(weather.delay + (0.8 if long else 0.02))
    if weather.down or (name.startswith("flaky-") and name not in refused):
        refused.add(name)
        raise HTTPException(503, "the store is busy")
    return {
        "codec": "unknown" if name.startswith("broken-") else "opus",
        "seconds": 40 if long else 4,
        "speech": "please bring bread and coffee on your way home",
    }


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}
