"""How each framework is told to run a lost job again, and which of them do that by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from otel_kit.jobs.lease_store import Lease

#: Those that need no help, and when.
BY_THEMSELVES: Final = {
    "arq": "arq runs it again by itself, when the job's timeout and 10 s have passed",
    "dramatiq": "Dramatiq runs it again by itself, a minute after its worker's last heartbeat",
    "sql": "the table's own observer takes care of it",
}


class RefusedError(Exception):
    """The job is not to be run again, or cannot be; the message says why."""


def refusal(lease: Lease) -> str:
    """Why this run cannot be recovered, whatever the broker says; ``""`` if it can."""
    if lease.framework in BY_THEMSELVES:
        return BY_THEMSELVES[lease.framework]
    if not lease.job.recoverable:
        return "not marked as recoverable"
    if lease.framework not in _ACTS:
        return f"nobody knows how to run a job of {lease.framework or 'this framework'} again"
    if lease.framework == "celery" and lease.payload is None:
        return "its message was not kept: larger than 64 KiB, or gone before the lease was taken"
    return ""


def run_again(lease: Lease, broker: str, *, sure: bool) -> str:
    """Hand the job to its broker once more.

    Args:
        lease: The lost run.
        broker: The broker's URL.
        sure: Whether somebody has looked that nothing of the run is left, where that cannot be told from here.

    Returns:
        What was done, in words.

    Raises:
        RefusedError: The framework says that this is not right.
    """
    try:
        return _ACTS[lease.framework](lease, broker, sure)
    except ModuleNotFoundError as missing:
        raise RefusedError(
            f"this needs the package {missing.name!r}: pip install 'otel-kit[{lease.framework}]'"
        ) from missing


def _rq(lease: Lease, broker: str, sure: bool) -> str:
    from otel_kit.integrations.rq.recovery import recover

    try:
        return recover(lease.job.id, broker, lease.started_at, sure=sure)
    except ValueError as refused:
        raise RefusedError(str(refused)) from refused


def _celery(lease: Lease, broker: str, _sure: bool) -> str:
    from celery import Celery

    from otel_kit.integrations.celery.recovery import recover
    from otel_kit.integrations.redis_leases import redis_url

    single = redis_url(broker)
    if single is not None and _unacknowledged(single, lease.job.id):
        raise RefusedError(
            "the broker still has its message, and delivers it again by itself when its visibility timeout is over"
        )
    with Celery(broker=broker) as app:
        try:
            recover(app, json.loads(lease.payload or ""))
        except ValueError as refused:
            raise RefusedError(str(refused)) from refused
    return f"sent once more to queue {lease.job.queue}"


def _unacknowledged(url: str, task_id: str) -> bool:
    """Whether Kombu still keeps this job's message for a redelivery: so with acks_late, and always in the solo pool.

    A look at all of them, which are as many as workers have taken.
    """
    from otel_kit.integrations.redis_keys import own_client

    wanted = f'"id": "{task_id}"'
    with own_client(url) as client:
        return any(wanted in raw.decode("utf-8", "replace") for _tag, raw in client.hscan_iter("unacked", count=500))


_ACTS: Final[dict[str, Callable[[Lease, str, bool], str]]] = {"rq": _rq, "celery": _celery}
