"""A worker and its work horse: what the one hands to the other, and how the worker counts the run whatever becomes of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from opentelemetry.trace import SpanContext

from otel_kit.guard import guard
from otel_kit.integrations.rq import abandoned, messages, runs, schedules
from otel_kit.integrations.rq.faults import JobStoppedError
from otel_kit.integrations.rq.report import Line, Report
from otel_kit.integrations.rq.runs import State
from otel_kit.jobs import propagation
from otel_kit.jobs.leases import WorkerLost
from otel_kit.jobs.model import Outcome
from otel_kit.jobs.recorder import get_recorder
from otel_kit.lifecycle import lifecycle
from otel_kit.telemetry.ids import chosen


class Supervision:
    """One run in a horse, as its worker sees it."""

    def __init__(self, job: Any) -> None:
        self.job = messages.job_of(job, taken=True)
        self.line = Line.open()
        self.started_at = time.time()
        self.context = propagation.choose_ids(self.job, get_recorder().policy)
        self.state = State(self.job, None, self.context)
        self._rq_job = job
        self._report: Report | None = None
        tally = get_recorder().tally
        schedules.learn(job, self.job)
        tally.received(self.job)
        tally.started(self.job, self.started_at, self.context)
        runs.begin(job.id, self.state)

    def reported(self) -> Report | None:
        """What the horse has said, if it came to that."""
        if self._report is None:
            self._report = self.line.receive()
        return self._report

    def died(self, outcome: Outcome, error: BaseException) -> None:
        """The horse was killed in the middle of the run: the span that it could not send is made here, with its very ids."""
        if self.state.outcome is not None or self.reported() is not None:
            return
        self.state.outcome, self.state.error = outcome, error
        with chosen(self.context):
            get_recorder().died(self.job, outcome, self.started_at, error)

    def end(self, cut_off: BaseException | None) -> None:
        """The horse is gone. Count the run."""
        runs.end(self.job.id)
        try:
            self._count(cut_off)
        finally:
            self.line.close()

    def _count(self, cut_off: BaseException | None) -> None:
        tally = get_recorder().tally
        report = self.reported()
        if report is not None:
            tally.finished(self.job, report.outcome, report.duration, report.error)
            return
        if self.state.outcome is None and cut_off is not None:
            # The worker was told to go at once and has taken its horse along, or could not start one.
            self._lost_behind_rq(cut_off)
        outcome = self.state.outcome
        if outcome not in (Outcome.LOST, Outcome.REVOKED):
            outcome = _outcome_in_redis(self._rq_job)
            if outcome is Outcome.LOST:
                self._lost_behind_rq(WorkerLost("the work horse exited with status 0 in the middle of the job"))
        tally.finished(self.job, outcome, time.time() - self.started_at, self.state.error)

    def _lost_behind_rq(self, error: BaseException) -> None:
        """RQ does not know of it yet, and its maintenance will find it some time."""
        self.died(Outcome.LOST, error)
        abandoned.mark(self.job, self._rq_job.connection)


_current: Supervision | None = None
_inherited: Line | None = None
_worker_pid = 0


def _outcome_in_redis(job: Any) -> Outcome:
    """How a run ended whose horse said nothing: one without the kit in it, or that ended before it could."""
    from rq.exceptions import InvalidJobOperation
    from rq.job import JobStatus

    try:
        status = job.get_status()
    except InvalidJobOperation:
        return Outcome.SUCCESS  # done, and its result was not to be kept
    if status in (JobStatus.QUEUED, JobStatus.SCHEDULED):
        return Outcome.RETRY
    if status == JobStatus.STARTED:
        return Outcome.LOST
    return Outcome.FAILURE if status in (JobStatus.FAILED, JobStatus.STOPPED) else Outcome.SUCCESS


# In the worker


def execute_job(wrapped: Callable[..., Any], _worker: Any, args: Any, kwargs: Any) -> Any:
    """A worker with horses takes a job, starts a horse, and waits for its end."""
    global _current
    supervised = None
    with guard("rq: a delivery"):
        supervised = _current = Supervision(args[0] if args else kwargs["job"])
    cut_off: BaseException | None = None
    try:
        return wrapped(*args, **kwargs)
    except BaseException as error:
        cut_off = error
        raise
    finally:
        _current = None
        if supervised is not None:
            with guard("rq: the end of a run"):
                supervised.end(cut_off)


def spawn(wrapped: Callable[..., Any], _worker: Any, args: Any, kwargs: Any) -> Any:
    """A spawned horse inherits no memory: it finds the pipe, and the ids of its span, in its environment."""
    with nullcontext() if _current is None else _current.line.passed_on(_current.context):
        return wrapped(*args, **kwargs)


def work_horse_killed(wrapped: Callable[..., Any], _worker: Any, args: Any, kwargs: Any) -> Any:
    """The horse ended, and the job did not."""
    with guard("rq: a killed work horse"):
        if _current is not None:
            status = args[2] if len(args) > 2 else kwargs.get("ret_val")
            _current.died(Outcome.LOST, WorkerLost(_how(status)))
    return wrapped(*args, **kwargs)


def _how(status: int | None) -> str:
    if status is None:
        return "the work horse was killed: it had not ended a minute after the job's timeout"
    if os.WIFSIGNALED(status):
        return f"the work horse was killed by signal {os.WTERMSIG(status)}"
    return f"the work horse exited with status {os.waitstatus_to_exitcode(status)} in the middle of the job"


def job_failed(wrapped: Callable[..., Any], worker: Any, args: Any, kwargs: Any) -> Any:
    """RQ puts a failure on record: also that of a job that was stopped, or that never came to run."""
    job = args[0] if args else kwargs["job"]
    with guard("rq: a failure"):
        stopped = worker._stopped_job_id == job.id  # noqa: SLF001 - RQ says it nowhere else
        state = runs.of(job)
        if stopped and state is not None:
            error = JobStoppedError("the job was stopped while it ran")
            if state.run is not None:
                state.outcome = Outcome.REVOKED
            elif _current is not None:
                _current.died(Outcome.REVOKED, error)
    return wrapped(*args, **kwargs)


# In the horse


def in_horse() -> SpanContext | None:
    """A horse begins: the ids that its worker has chosen for the run."""
    global _inherited, _worker_pid
    lifecycle.pooled = True
    _worker_pid = os.getppid()
    if _current is not None:
        return _current.context
    _inherited, context = Line.inherited()
    if lifecycle.forked_at is None:
        # As short-lived as a forked one: without this each would leave a set of series of its own.
        lifecycle.forked_at = time.monotonic()
    return context


def orphaned() -> bool:
    """Whether this horse's worker has died."""
    return os.getppid() != _worker_pid


def report(said: Report) -> None:
    """Tell the worker how the run ended."""
    line = _current.line if _current is not None else _inherited
    if line is not None:
        line.send(said)
