"""The worker's main process: its `Request` objects see the end of every run, also of one whose child was killed.

They count it exactly once, for every kind of pool.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.trace import SpanContext

from otel_kit.guard import guard
from otel_kit.integrations.celery import run_ids
from otel_kit.integrations.celery.messages import is_plumbing, job_of_request
from otel_kit.jobs import propagation
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import get_recorder
from otel_kit.telemetry.ids import chosen

#: The message that last became a request, in the one thread that takes messages.
taken: list[Any] = [None]
# Requests that run in this very process, by task id: Celery itself forgets one that is revoked before it has stopped.
_in_process: dict[str, _Observed] = {}


class _Observed:
    """Mixed into Celery's own Request class: reports to the tally what the pool reports to it."""

    _otel_kit_job: Job | None = None
    _otel_kit_started: float | None = None
    _otel_kit_span: SpanContext | None = None
    #: What somebody wants to become of it: ``REVOKED``, or ``LOST`` where the worker itself cuts it off.
    otel_kit_wanted: Outcome | None = None
    #: Whether the pool's processes are others than this one.
    _otel_kit_forks = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with guard("celery: a delivery"):
            taken[0] = self.message  # type: ignore[attr-defined]
            job = job_of_request(self)
            if not is_plumbing(job.name):
                self._otel_kit_job = job
                get_recorder().tally.received(job)

    def execute_using_pool(self, *args: Any, **kwargs: Any) -> Any:
        with guard("celery: choosing a run's ids"):
            job = self._otel_kit_job
            if job is not None and self._otel_kit_forks:
                self._otel_kit_span = run_ids.choose(job, self.request_dict)  # type: ignore[attr-defined]
        return super().execute_using_pool(*args, **kwargs)  # type: ignore[misc]

    def on_accepted(self, pid: int, time_accepted: float) -> Any:
        with guard("celery: a run was accepted"):
            if self._otel_kit_job is not None:
                started_at = time.time() - (time.monotonic() - time_accepted)
                self._otel_kit_started = started_at
                if not self._otel_kit_forks:
                    _in_process[self._otel_kit_job.id] = self
                get_recorder().tally.started(self._otel_kit_job, started_at, self._otel_kit_span)
        return super().on_accepted(pid, time_accepted)  # type: ignore[misc]

    def on_success(self, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        with guard("celery: a run came back"):
            if isinstance(failed__retval__runtime, tuple):
                failed, result, runtime = failed__retval__runtime
                outcome, error = _classify(result.exception) if failed else (Outcome.SUCCESS, None)
                self.otel_kit_end(outcome, error, runtime)
            else:  # a thread whose task has raised SystemExit; Celery itself does not know what to do with it
                self.otel_kit_end(*_classify(failed__retval__runtime.exception), None)
        return super().on_success(failed__retval__runtime, **kwargs)  # type: ignore[misc]

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        job = self._otel_kit_job
        with guard("celery: a run failed"):
            outcome, error = _classify(exc_info.exception)
            if outcome is Outcome.REVOKED and self.otel_kit_wanted is not None:
                outcome = self.otel_kit_wanted
            self._otel_kit_died(outcome, error)
        with _in_trace_of(job):
            return super().on_failure(exc_info, *args, **kwargs)  # type: ignore[misc]

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        job = self._otel_kit_job
        if soft:
            return super().on_timeout(soft, timeout)  # type: ignore[misc]
        with guard("celery: a run exceeded its time limit"):
            from celery.exceptions import TimeLimitExceeded

            self._otel_kit_died(Outcome.LOST, TimeLimitExceeded(timeout))
        with _in_trace_of(job):
            return super().on_timeout(soft, timeout)  # type: ignore[misc]

    def terminate(self, *args: Any, **kwargs: Any) -> Any:
        self.otel_kit_wanted = Outcome.REVOKED
        return super().terminate(*args, **kwargs)  # type: ignore[misc]

    def cancel(self, *args: Any, **kwargs: Any) -> Any:
        # The worker is leaving, or has lost its broker: nobody wanted this run to end.
        self.otel_kit_wanted = Outcome.LOST
        return super().cancel(*args, **kwargs)  # type: ignore[misc]

    def _otel_kit_died(self, outcome: Outcome, error: BaseException | None) -> None:
        job = self._otel_kit_job
        if job is None or self._otel_kit_started is None:
            return
        try:
            if error is not None and outcome in (Outcome.LOST, Outcome.REVOKED):
                with chosen(self._otel_kit_span):
                    get_recorder().died(job, outcome, self._otel_kit_started, error)
        finally:
            self.otel_kit_end(outcome, error, None)

    def otel_kit_end(self, outcome: Outcome, error: BaseException | None, runtime: float | None) -> None:
        job, started_at = self._otel_kit_job, self._otel_kit_started
        if job is None or started_at is None:
            return  # ended already, or never accepted
        self._otel_kit_job = None
        _in_process.pop(job.id, None)
        duration = runtime if runtime is not None else time.time() - started_at
        get_recorder().tally.finished(job, outcome, duration, error)


@contextmanager
def _in_trace_of(job: Job | None) -> Iterator[None]:
    """What the main process publishes in a dead run's name (errbacks, a retry) belongs to its trace."""
    if job is None:
        yield
        return
    token = otel_context.attach(propagation.extract(job))
    try:
        yield
    finally:
        otel_context.detach(token)


def _classify(error: Any) -> tuple[Outcome, BaseException | None]:
    """How it ended, and what went wrong; `Ignore` and `Reject` are what a task says, not what befell it."""
    from billiard.einfo import ExceptionWithTraceback
    from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
    from celery.exceptions import Ignore, Reject, Retry

    if isinstance(error, ExceptionWithTraceback):
        error = error.exc
    if isinstance(error, Retry):
        return Outcome.RETRY, error.exc if isinstance(error.exc, BaseException) else error
    if isinstance(error, (WorkerLostError, TimeLimitExceeded, SystemExit, KeyboardInterrupt)):
        return Outcome.LOST, error
    if isinstance(error, Terminated):
        return Outcome.REVOKED, error
    if isinstance(error, Reject):
        return Outcome.REJECTED, None
    if isinstance(error, Ignore):
        return Outcome.SUCCESS, None
    return Outcome.FAILURE, error


def create_request_cls(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    made = wrapped(*args, **kwargs)
    pool = kwargs.get("pool", args[2] if len(args) > 2 else None)
    # Only the pool of processes counts its slots with one.
    return type("Request", (_Observed, made), {"_otel_kit_forks": bool(getattr(pool, "uses_semaphore", False))})


def outcome_of_cut(job: Job) -> Outcome:
    """What became of a run that was cut off in this process: somebody wanted that, or it is lost."""
    request = _in_process.get(job.id)
    return (request.otel_kit_wanted if request is not None else None) or Outcome.LOST


def cut_off(job: Job, outcome: Outcome, error: BaseException, duration: float) -> None:
    """Count a run that was cut off in this process; what the pool says of it later is of no account."""
    request = _in_process.get(job.id)
    if request is not None:
        request.otel_kit_end(outcome, error, duration)


def revoked(sender: Any, request: Any, terminated: bool = False, expired: bool = False, **_kwargs: Any) -> None:
    # A run that is terminated had started; its end is seen by on_failure.
    if terminated or is_plumbing(sender.name):
        return
    with guard("celery: task_revoked"):
        from otel_kit.integrations.celery.messages import job_of_task

        get_recorder().never_ran(job_of_task(sender, request), Outcome.EXPIRED if expired else Outcome.REVOKED)
