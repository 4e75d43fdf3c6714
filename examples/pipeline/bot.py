"""The bot: one line on standard input is one message, and is answered on standard output.

`chat-7 /transcribe voice-12.ogg`, `chat-7 /remind 5 water the plants`, `chat-7 /status`
"""

import logging
import sys

import httpx

import otel_kit
import settings

otel_kit.configure("bot")

logging.basicConfig(level=logging.INFO)
log = logging.getLogger("bot")
last_note: dict[str, int] = {}


def answer(gateway: httpx.Client, chat: str, text: str) -> str:
    match text.split(maxsplit=2):
        case ["/transcribe", recording]:
            note = gateway.post("/notes", json={"chat": chat, "recording": recording}).raise_for_status().json()
            last_note[chat] = note["id"]
            return f"note {note['id']} is {note['state']}"
        case ["/remind", seconds, what]:
            gateway.post("/reminders", json={"chat": chat, "text": what, "seconds": seconds}).raise_for_status()
            return f"in {seconds} seconds"
        case ["/status"] if chat in last_note:
            note = gateway.get(f"/notes/{last_note[chat]}").raise_for_status().json()
            return f"note {note['id']} is {note['state']}: {note['transcript'] or '...'}"
        case ["/status"]:
            return "you have sent no note yet"
    return "I know /transcribe RECORDING, /remind SECONDS WHAT and /status"


def main() -> None:
    with httpx.Client(base_url=settings.GATEWAY_URL, timeout=10) as gateway:
        for line in sys.stdin:
            chat, _, text = line.strip().partition(" ")
            try:
                reply = answer(gateway, chat, text)
            except httpx.HTTPError:
                log.exception("the gateway did not take a message")
                reply = "something is wrong on our side, please try again"
            print(chat, reply, flush=True)


if __name__ == "__main__":
    main()
