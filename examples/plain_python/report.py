"""A script for crontab: `python report.py`, every night at two."""

import random
import time

import otel_kit

otel_kit.configure("reports")


class NothingSoldError(Exception):
    """May happen on a holiday: such a run failed, and is nobody's fault."""


@otel_kit.step("read")
def read_orders() -> list[int]:
    """What was sold yesterday, in cents."""
    time.sleep(0.2)
    return [random.randint(500, 20_000) for _ in range(random.randint(0, 50))]


@otel_kit.job("nightly-report", schedule="0 2 * * *", max_runtime=900, expected=NothingSoldError)
def report() -> int:
    """Adds up a day."""
    orders = read_orders()
    if not orders:
        raise NothingSoldError
    total = 0
    with otel_kit.step("add up"):
        for number, cents in enumerate(orders, 1):
            total += cents
            time.sleep(0.02)
            otel_kit.progress(number / len(orders), f"{number} of {len(orders)} orders")
    return total


if __name__ == "__main__":
    print(f"{report() / 100:.2f}")
