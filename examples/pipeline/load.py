"""People writing to the bot: `python load.py --rate 5 --duration 60 | python bot.py`.

Prints one message per line on standard output and, at the end, how many of each kind as JSON on standard error.
The same seed gives the same messages.
"""

import argparse
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator

# What people send, and how often: most of it is fine. Of every twenty messages the last eight come in one burst.
MIX = {"success": 60, "slow": 8, "retry": 10, "failure": 7, "delayed": 10, "status": 5}
BURST_EVERY = 20
BURST_SIZE = 8


def messages(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (kind, message) pairs. Every kind comes once before chance decides, so a short run shows them all."""
    chance = random.Random(seed)
    for number in itertools.count(1):
        kind = list(MIX)[number - 1] if number <= len(MIX) else chance.choices(list(MIX), list(MIX.values()))[0]
        chat = f"chat-{chance.randint(1, 9)}"
        match kind:
            case "success":
                # Some recordings are sent twice: the second time the words come from the cache.
                text = f"/transcribe voice-{chance.randint(1, 500)}.ogg"
            case "slow":
                text = f"/transcribe long-{number}.ogg"
            case "retry":
                text = f"/transcribe flaky-{seed}-{number}.ogg"
            case "failure":
                text = f"/transcribe broken-{number}.ogg"
            case "delayed":
                text = f"/remind {chance.randint(1, 2)} water the plants"
            case _:
                text = "/status"
        yield kind, f"{chat} {text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=2.0, help="messages per second, between the bursts (2)")
    parser.add_argument("--duration", type=float, default=float("inf"), help="seconds; without it, until interrupted")
    parser.add_argument("--count", type=int, help="stop after so many messages")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same messages (1)")
    options = parser.parse_args()
    if options.rate <= 0:
        parser.error(f"--rate is {options.rate}, and must be above 0")

    sent: Counter[str] = Counter(dict.fromkeys(MIX, 0))
    end = time.monotonic() + options.duration
    try:
        for number, (kind, message) in enumerate(itertools.islice(messages(options.seed), options.count)):
            if time.monotonic() >= end:
                break
            print(message, flush=True)
            sent[kind] += 1
            if number % BURST_EVERY < BURST_EVERY - BURST_SIZE:
                time.sleep(1 / options.rate)
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    print(json.dumps(sent), file=sys.stderr)


if __name__ == "__main__":
    main()
