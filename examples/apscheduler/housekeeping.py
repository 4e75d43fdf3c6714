"""A scheduler in a process of its own: `python housekeeping.py`."""

import random
import time

import otel_kit

otel_kit.configure("housekeeping")

from apscheduler.schedulers.blocking import BlockingScheduler  # noqa: E402


def sweep() -> int:
    """Every five seconds: throws away what nobody wants any more."""
    time.sleep(random.random())
    return random.randint(0, 9)


@otel_kit.job("exchange-rates", max_runtime=20, expected=TimeoutError)
def fetch_rates() -> None:
    """Every minute: asks a server that is busy now and then."""
    with otel_kit.step("ask"):
        time.sleep(0.1)
        if random.random() < 0.2:
            raise TimeoutError("the server is busy")


def main() -> None:
    """Schedule all of it, and run it until Ctrl-C."""
    scheduler = BlockingScheduler(timezone="UTC", job_defaults={"misfire_grace_time": 30})
    scheduler.add_job(sweep, "interval", seconds=5, id="sweep", name="sweep")
    scheduler.add_job(fetch_rates, "cron", second=0, id="rates")
    print("at work", flush=True)
    scheduler.start()


if __name__ == "__main__":
    main()
