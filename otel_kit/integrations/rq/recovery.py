"""Running a lost job again: RQ keeps it by its id."""

from __future__ import annotations

import time
from typing import Any, Final

from otel_kit.integrations.redis_keys import own_client

#: What RQ says of a job that needs no help.
_NO_NEED: Final = {
    "queued": "it waits in its queue already",
    "deferred": "it waits for another job",
    "scheduled": "it waits for its time",
    "finished": "it has finished",
    "stopped": "somebody has stopped it",
    "canceled": "somebody has cancelled it",
}


#: Seconds by which a host's clock may be wrong, and a work horse late in ending itself.
_MARGIN: Final = 30.0


def recover(job_id: str, url: str, started_at: float, *, sure: bool = False) -> str:
    """Put a job whose worker has died into its queue again.

    Args:
        job_id: RQ's own id.
        url: The Redis of its queues.
        started_at: When the lost run started (unix seconds).
        sure: Whether somebody knows that its work horse is gone too. A horse outlives a worker that is killed, finishes its
            job, and nothing in Redis tells; only its timeout ends it for certain.

    Returns:
        What was done, in words.

    Raises:
        ValueError: The job is not one that has been cut off; the message says what it is.
    """
    from redis.exceptions import WatchError
    from rq import Queue
    from rq.exceptions import NoSuchJobError
    from rq.job import Job
    from rq.registry import FailedJobRegistry, StartedJobRegistry

    with own_client(url) as client:
        try:
            job = Job.fetch(job_id, connection=client)
        except NoSuchJobError:
            raise ValueError("RQ does not know it any more") from None
        if getattr(job, "has_rate_limit", False):
            raise ValueError(
                "its rate is limited: once RQ has it among the failed ones, `rq requeue` takes account of that"
            )
        queue = Queue(job.origin, connection=client)
        started, failed = (kind(job.origin, connection=client) for kind in (StartedJobRegistry, FailedJobRegistry))
        with client.pipeline() as pipe:
            # What somebody changes from here on ends this without having done anything.
            pipe.watch(job.key, started.key)
            status = _text(pipe.hget(job.key, "status"))
            if status in _NO_NEED:
                raise ValueError(_NO_NEED[status])
            if not sure:
                _wait_for_horse(job, started_at)
            runs = [entry for entry in pipe.zrange(started.key, 0, -1) if _text(entry).split(":")[0] == job_id]
            pipe.multi()
            if runs:
                pipe.zrem(started.key, *runs)
            pipe.zrem(failed.key, job_id)
            job.started_at, job.ended_at = None, None
            # As RQ's own requeue does it.
            queue._enqueue_job(job, pipeline=pipe)  # noqa: SLF001
            try:
                pipe.execute()
            except WatchError:
                raise ValueError("somebody else has changed it at this very moment") from None
    return f"put into queue {job.origin} again"


def _wait_for_horse(job: Any, started_at: float) -> None:
    timeout = float(job.timeout or 180)
    remaining = started_at + timeout + _MARGIN - time.time()
    if timeout < 0:
        raise ValueError(
            "its work horse may have outlived its worker, and has no timeout: look for it, then add --sure"
        )
    if remaining > 0:
        raise ValueError(
            f"its work horse may have outlived its worker, for {remaining:.0f} s more: wait, or look for it and add --sure"
        )


def _text(raw: Any) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw or "")
