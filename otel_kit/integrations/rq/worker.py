"""The worker's process as such: when it is ready, whether it moves, and what comes out of its queues that is no job."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from otel_kit.guard import guard
from otel_kit.integrations.redis_keys import RedisLease, like
from otel_kit.integrations.redis_leases import leases_for
from otel_kit.integrations.rq import abandoned, messages
from otel_kit.integrations.rq.queues import RQQueue
from otel_kit.jobs.leases import keep
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.queues import watch_queue
from otel_kit.jobs.recorder import get_recorder

#: Seconds by which the loop may be late before it counts as stuck.
_MARGIN: Final = 15.0


def bootstrap(wrapped: Callable[..., Any], worker: Any, args: Any, kwargs: Any) -> Any:
    """The worker has registered itself: from here on it takes jobs."""
    result = wrapped(*args, **kwargs)
    with guard("rq: a worker is ready"):
        _ready(worker)
    return result


def _ready(worker: Any) -> None:
    tally = get_recorder().tally
    tally.pool(worker.queue_names(), lambda: 1)
    tally.beat("loop", Loop(worker).last_sign)
    connection = worker.connection
    keep(leases_for(lambda: like(connection)), framework="rq")
    client = like(connection)
    lease = RedisLease(client)
    for queue in worker.queues:
        prefix = worker.job_class.redis_job_namespace_prefix
        watch_queue(RQQueue(queue.name, lambda: client, key=queue.key, job_prefix=prefix), lease)


class Loop:
    """The worker's main thread. It waits in Redis for minutes, or for its horse, and says before for how long at most."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._last = time.time()
        worker._otel_kit_loop = self  # noqa: SLF001 - its heartbeats find it there

    def moved(self) -> None:
        """The thread came by."""
        self._last = time.time()

    def last_sign(self) -> float:
        """When it last showed life (unix seconds): now, as long as it may still be where it said it would wait."""
        now = time.time()
        return now if now - self._last < self._allowed() + _MARGIN else self._last

    def _allowed(self) -> float:
        state = str(getattr(self._worker.get_state(), "value", self._worker.get_state()))
        if state == "busy":
            if hasattr(type(self._worker), "fork_work_horse") and self._worker.horse_pid:
                return float(self._worker.job_monitoring_interval)
            # The job runs in this very thread.
            limits = [entry.job.max_runtime for entry in get_recorder().running.snapshot()]
            return max((math.inf if limit is None else limit for limit in limits), default=60.0)
        # Suspended workers look every second whether they still are, and say nothing of it.
        return math.inf if state == "suspended" else float(self._worker.dequeue_timeout)


def heartbeat(wrapped: Callable[..., Any], worker: Any, args: Any, kwargs: Any) -> Any:
    """RQ's own sign of life, whether or not Redis takes it."""
    loop = getattr(worker, "_otel_kit_loop", None)
    if loop is not None:
        loop.moved()
    return wrapped(*args, **kwargs)


# What was taken from a queue last, by its name, while RQ looks what it is.
_taken: ContextVar[list[str] | None] = ContextVar("otel_kit_rq_taken", default=None)


def dequeue_any(wrapped: Callable[..., Any], _queue_class: Any, args: Any, kwargs: Any) -> Any:
    """RQ takes a job's id from a queue and fetches what it is the id of."""
    token = _taken.set([])
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        job_id, queue = getattr(error, "job_id", None), getattr(error, "queue", None)
        if job_id is not None:  # what there is is no job, and RQ's worker gives up at that
            with guard("rq: a job that cannot be read"):
                get_recorder().never_ran(_nameless(job_id, getattr(queue, "name", "")), Outcome.REJECTED, error)
        raise
    finally:
        _taken.reset(token)


def from_queue_key(wrapped: Callable[..., Any], _queue_class: Any, args: Any, kwargs: Any) -> Any:
    """Which queue the id came from."""
    queue = wrapped(*args, **kwargs)
    taken = _taken.get()
    if taken is not None:
        taken[:] = [queue.name]
    return queue


def fetch(wrapped: Callable[..., Any], _job_class: Any, args: Any, kwargs: Any) -> Any:
    """A job that is no longer there when its turn comes has outlived its ``ttl``. RQ passes on without a word."""
    taken = _taken.get()
    if not taken:
        return wrapped(*args, **kwargs)
    from rq.exceptions import NoSuchJobError

    try:
        return wrapped(*args, **kwargs)
    except NoSuchJobError as error:
        with guard("rq: a job that is gone"):
            job = _nameless(args[0] if args else kwargs["id"], taken[0])
            strange = str(error).startswith("Unexpected")
            get_recorder().tally.received(job)
            get_recorder().never_ran(job, Outcome.REJECTED if strange else Outcome.EXPIRED, error if strange else None)
        raise


def _nameless(job_id: Any, queue: str) -> Job:
    return Job(messages.UNKNOWN, str(job_id)[:200], queue or messages.UNKNOWN, messages.SYSTEM)


def retry(wrapped: Callable[..., Any], job: Any, args: Any, kwargs: Any) -> Any:
    """RQ runs a job again that failed, or that it has found abandoned."""
    abandoned.found(job)
    return wrapped(*args, **kwargs)


def handle_failure(wrapped: Callable[..., Any], job: Any, args: Any, kwargs: Any) -> Any:
    """RQ gives a job up that failed, or that it has found abandoned."""
    abandoned.found(job)
    return wrapped(*args, **kwargs)


def cancel(wrapped: Callable[..., Any], job: Any, args: Any, kwargs: Any) -> Any:
    """A job is cancelled; unless it runs already it never will."""
    before: list[str] = []
    token = _cancelled.set(before)
    try:
        result = wrapped(*args, **kwargs)
    finally:
        _cancelled.reset(token)
    with guard("rq: a cancelled job"):
        if before and before[0] in _WAITING:
            get_recorder().never_ran(messages.job_of(job), Outcome.REVOKED)
    return result


def set_status(wrapped: Callable[..., Any], job: Any, args: Any, kwargs: Any) -> Any:
    """In the middle of `cancel`, when RQ has just asked Redis what the job's status is, and replaces it."""
    before = _cancelled.get()
    if before is not None:
        status = job._status  # noqa: SLF001 - the public way asks Redis again
        before.append(str(getattr(status, "value", status)))
    return wrapped(*args, **kwargs)


_cancelled: ContextVar[list[str] | None] = ContextVar("otel_kit_rq_cancelled", default=None)


_WAITING: Final = frozenset({"created", "queued", "deferred", "scheduled", "rate_limited", "ready_to_enqueue"})
