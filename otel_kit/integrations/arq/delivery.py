"""One delivery of a job: what is known of it, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import Token
from dataclasses import replace
from typing import Any, Final, cast

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_kit.guard import guard
from otel_kit.integrations.arq import attempts
from otel_kit.integrations.arq.producer import SYSTEM
from otel_kit.jobs.delivery import delivered
from otel_kit.jobs.model import Job, Outcome, Trigger
from otel_kit.jobs.recorder import Run, get_recorder

#: The name of a job whose payload is gone, or cannot be read.
UNKNOWN: Final = "unknown"


class Delivery:
    """What is known of one delivery.

    Args:
        worker: arq's.
        job_id: The job's own id.
        score: Its place in the queue: when it was to start (unix milliseconds).
    """

    def __init__(self, worker: Any, job_id: str, score: int) -> None:
        self.worker = worker
        self.job_id = job_id
        self._score = score
        self._name = ""
        self._enqueued_ms = 0
        self._headers: object = None
        self._attempt = 1
        self._refused: BaseException | None = None
        self._error: BaseException | None = None
        self._aborted = False
        self._run: Run | None = None
        self._token: Token[Context] | None = None

    def has_headers(self, headers: object) -> None:
        """The headers in its payload."""
        self._headers = headers

    def read(self, name: str, enqueued_ms: int) -> None:
        """Its payload could be read."""
        self._name, self._enqueued_ms = name, enqueued_ms

    def ends_with(self, attempt: int, error: BaseException) -> None:
        """arq will report this error as the job's result."""
        self._attempt, self._refused = attempt, error

    def raised(self, error: BaseException) -> None:
        """The job's function raised."""
        self._error = error
        self._aborted = self.job_id in self.worker.aborting_tasks

    async def start(self, ctx: Mapping[str, Any], surroundings: Context) -> None:
        """The run begins, before the application's own ``on_job_start``, which is part of it."""
        self._attempt = int(ctx["job_try"])
        headers, let_go_at = await attempts.take(self.worker.pool, self.job_id) if self._attempt > 1 else ({}, None)
        with guard("arq: the start of a run"):
            # The worker itself is silent; what the application's hooks do is not.
            self._token = otel_context.attach(surroundings)
            job = self._job(headers, let_go_at)
            get_recorder().tally.received(job)
            self._run = get_recorder().start(job, counted=True)

    def finish(self, *, finally_: bool) -> Run | None:
        """The run ended; ``finally_`` says whether arq is done with the job. The run, if it is to be repeated."""
        if self._run is None or self._run.finished:
            return None
        outcome, error = self._outcome(finally_=finally_)
        self._run.finish(outcome, error)
        return self._run if outcome is Outcome.RETRY else None

    def never_ran(self) -> None:
        """arq gave it up before its start."""
        outcome, reason = Outcome.FAILURE, self._refused  # its tries are used up, all of them retried
        if not self._name and not _is_unreadable(reason):
            outcome, reason = Outcome.EXPIRED, None
        elif isinstance(reason, asyncio.CancelledError):
            outcome, reason = Outcome.REVOKED, None
        elif self._name not in self.worker.functions:
            outcome = Outcome.REJECTED
        job = self._job({}, None)
        get_recorder().tally.received(job)
        get_recorder().never_ran(job, outcome, reason)

    def broke_off(self, error: BaseException) -> None:
        """`run_job` itself failed: a hook of the application's did, or Redis, or the worker was stopped in one of them."""
        if self._run is None or self._run.finished:
            return
        if isinstance(error, asyncio.CancelledError):
            self._run.finish(Outcome.RETRY, error)  # arq runs it again when its key in-progress expires
        elif isinstance(error, Exception):
            self._run.finish(Outcome.FAILURE, error)
        else:
            self._run.finish(Outcome.LOST, error)  # SystemExit and its like: the worker goes

    def leave(self) -> None:
        """The task is the worker's again."""
        if self._token is not None:
            otel_context.detach(self._token)

    def _outcome(self, *, finally_: bool) -> tuple[Outcome, BaseException | None]:
        error = self._error
        if not finally_:
            return Outcome.RETRY, _cause(error)
        if error is None:
            # The function was fine and its result was not: arq failed to describe it.
            return (Outcome.SUCCESS, None) if self._refused is None else (Outcome.FAILURE, self._refused)
        if not isinstance(error, asyncio.CancelledError):
            return Outcome.FAILURE, error
        if self._aborted:
            return Outcome.REVOKED, None
        task = asyncio.current_task()
        if isinstance(self._refused, asyncio.CancelledError) or (task is not None and task.cancelling()):
            return (
                Outcome.FAILURE,
                error,
            )  # the worker was stopped, or the job by itself, and arq is told not to repeat it
        limit = self._limit()
        timeout = TimeoutError(f"exceeded its time limit of {limit:g} s" if limit else "timed out")
        # Where it hung is what is worth knowing, not where arq noticed.
        return Outcome.FAILURE, timeout.with_traceback(error.__traceback__)

    def _limit(self) -> float | None:
        return limit_of(self.worker, self.worker.functions.get(self._name))

    def _job(self, more_headers: Mapping[str, str], let_go_at: float | None) -> Job:
        own = self._headers if isinstance(self._headers, Mapping) else {}
        enqueued_at, score_at = self._enqueued_ms / 1000, self._score / 1000
        job = delivered(
            self._name or _name_in(self.job_id, self.worker),
            self.job_id,
            self.worker.queue_name,
            SYSTEM,
            {**own, **more_headers},
            attempt=self._attempt,
            # arq's score of a job that is wanted at once is the very time at which it was enqueued.
            start_at=score_at if self._score > self._enqueued_ms > 0 else None,
            enqueued_at=max(enqueued_at, let_go_at or 0.0),
            max_runtime=self._limit(),
        )
        if job.attempt > 1:
            return replace(job, trigger=Trigger.RETRY)
        # arq enqueues a cron job up to a second ahead, which is no delay that anybody asked for.
        return replace(job, delayed=job.delayed and job.trigger is not Trigger.CRON)


def limit_of(worker: Any, function: Any) -> float | None:
    """Seconds that arq lets a job run."""
    own = getattr(function, "timeout_s", None)
    limit = worker.job_timeout_s if own is None else own
    return None if limit is None else float(limit)


def _cause(error: BaseException | None) -> BaseException | None:
    """What made a job ask for a retry: arq's `Retry` says only when."""
    from arq.worker import Retry

    if isinstance(error, Retry):
        return cast("BaseException", error.__cause__ or error.__context__ or error)
    return error


def _is_unreadable(reason: BaseException | None) -> bool:
    from arq.jobs import SerializationError

    return isinstance(reason, SerializationError)


def _name_in(job_id: str, worker: Any) -> str:
    """The name of a job whose payload is gone, from its id: a cron job's id begins with it."""
    for cron_job in worker.cron_jobs:
        if job_id == cron_job.job_id or job_id.rpartition(":")[0] == cron_job.name:
            return str(cron_job.name)
    return UNKNOWN
