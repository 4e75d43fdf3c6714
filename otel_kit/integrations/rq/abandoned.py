"""Jobs whose worker has died with them, as RQ's own maintenance finds them: a minute and a half later at the earliest.

Where runs are leased (`otel_kit.jobs.leases`) the loss is on record long before. So one look into the leases decides, on a
thread of ours: what has a lease, in force, run out or declared lost, is theirs to record.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit.guard import guard
from otel_kit.integrations.redis_keys import like
from otel_kit.integrations.redis_leases import leases_for
from otel_kit.integrations.rq import messages
from otel_kit.jobs.leases import WorkerLost
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import get_recorder

#: Of a run that its worker has recorded as lost while it left, and that RQ will find once more.
_MARK: Final = "otel-kit:rq:lost:{id}:{attempt}"
#: Seconds that it is remembered; RQ's maintenance runs every ten minutes.
_REMEMBERED: Final = 2 * 86_400
#: Seconds that a worker which is leaving waits for that.
_PATIENCE: Final = 2.0

_cleaning: ContextVar[str] = ContextVar("otel_kit_rq_cleaning", default="")


def cleanup(why: str) -> Callable[..., Any]:
    """A wrapper around a part of RQ's maintenance that finds abandoned jobs."""

    def wrapper(wrapped: Callable[..., Any], _registry: Any, args: Any, kwargs: Any) -> Any:
        token = _cleaning.set(why)
        try:
            return wrapped(*args, **kwargs)
        finally:
            _cleaning.reset(token)

    return wrapper


def found(job: Any) -> None:
    """RQ runs this job again, or records its failure; in the middle of its maintenance that means that it was abandoned."""
    why = _cleaning.get()
    if why:
        with guard("rq: an abandoned job"):
            lost = messages.job_of(job)
            started_at = messages.unix(job.started_at)
            _apart(_record, lost, started_at, job.connection, WorkerLost(why))


def mark(job: Job, connection: Any) -> None:
    """Have RQ's maintenance not record this loss a second time. Waits two seconds at most: the worker is on its way out."""
    _apart(_mark, job, connection).join(_PATIENCE)


def _apart(work: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=_quietly, args=(work, *args), name="otel-kit-rq-abandoned", daemon=True)
    thread.start()
    return thread


def _quietly(work: Callable[..., None], *args: Any) -> None:
    with guard("rq: recording an abandoned job"):
        work(*args)


def _mark(job: Job, connection: Any) -> None:
    with suppress_instrumentation():
        like(connection).set(_MARK.format(id=job.id, attempt=job.attempt), "1", ex=_REMEMBERED)


def _record(job: Job, started_at: float | None, connection: Any, error: WorkerLost) -> None:
    try:
        with suppress_instrumentation():
            if _is_recorded(job, connection):
                return
    except Exception:  # noqa: BLE001, S110 - Redis is away: better twice than never
        pass
    recorder = get_recorder()
    recorder.tally.lost(job, error)
    recorder.died(job, Outcome.LOST, started_at, error)


def _is_recorded(job: Job, connection: Any) -> bool:
    client = like(connection)
    if client.exists(_MARK.format(id=job.id, attempt=job.attempt)):
        return True
    leases = leases_for(lambda: client)
    if leases is None:
        return False
    known = [each.lease.job for each in leases.running()] + [each.lease.job for each in leases.lost()]
    return any((each.id, each.attempt) == (job.id, job.attempt) for each in known)
