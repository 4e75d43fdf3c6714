"""What the press does. No telemetry in here."""

import random
import time

from rq import get_current_job


def print_poster(number: int) -> int:
    """Sometimes the paper jams; the press tries again."""
    if random.random() < 0.2:
        raise ConnectionError("the paper has jammed")
    time.sleep(random.uniform(0.05, 0.2))
    get_current_job().connection.incrby("press:sheets", 1 + number % 3)
    return number


def clean_rollers() -> None:
    """Every few seconds here, every night elsewhere."""
    time.sleep(0.1)
