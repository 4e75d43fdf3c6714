"""The worker's main process: its `Request` objects see the end of every run, also of one whose child was killed.

They count it exactly once, for every kind of pool.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from otel_kit.guard import guard
from otel_kit.integrations.celery.messages import job_of, job_of_request, queue_of, system
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import get_recorder


class _Observed:
    """Mixed into Celery's own Request class: reports to the tally what the pool reports to it."""

    _otel_kit_job: Job | None = None
    _otel_kit_started: float | None = None

    def on_accepted(self, pid: int, time_accepted: float) -> Any:
        with guard("celery: a run was accepted"):
            started_at = time.time() - (time.monotonic() - time_accepted)
            self._otel_kit_job = job_of_request(self)
            self._otel_kit_started = started_at
            get_recorder().tally.started(self._otel_kit_job, started_at)
        return super().on_accepted(pid, time_accepted)  # type: ignore[misc]

    def on_success(self, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        with guard("celery: a run came back"):
            failed, result, runtime = failed__retval__runtime
            if failed:
                self._otel_kit_end(*_classify(result.exception), runtime)
            else:
                self._otel_kit_end(Outcome.SUCCESS, None, runtime)
        return super().on_success(failed__retval__runtime, **kwargs)  # type: ignore[misc]

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        with guard("celery: a run failed"):
            outcome, error = _classify(exc_info.exception)
            self._otel_kit_died(outcome, error)
            self._otel_kit_end(outcome, error, None)
        return super().on_failure(exc_info, *args, **kwargs)  # type: ignore[misc]

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        if not soft:
            with guard("celery: a run exceeded its time limit"):
                from celery.exceptions import TimeLimitExceeded

                error = TimeLimitExceeded(timeout)
                self._otel_kit_died(Outcome.LOST, error)
                self._otel_kit_end(Outcome.LOST, error, None)
        return super().on_timeout(soft, timeout)  # type: ignore[misc]

    def _otel_kit_died(self, outcome: Outcome, error: BaseException | None) -> None:
        if self._otel_kit_job is not None and error is not None and outcome in (Outcome.LOST, Outcome.REVOKED):
            get_recorder().died(self._otel_kit_job, outcome, self._otel_kit_started, error)

    def _otel_kit_end(self, outcome: Outcome, error: BaseException | None, runtime: float | None) -> None:
        job, started_at = self._otel_kit_job, self._otel_kit_started
        if job is None or started_at is None:
            return  # ended already, or never accepted
        self._otel_kit_job = None
        duration = runtime if runtime is not None else time.time() - started_at
        get_recorder().tally.finished(job, outcome, duration, error)


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
    return type("Request", (_Observed, made), {})


def received(request: Any, **_kwargs: Any) -> None:
    with guard("celery: task_received"):
        get_recorder().tally.received(job_of_request(request))


def revoked(sender: Any, request: Any, terminated: bool = False, expired: bool = False, **_kwargs: Any) -> None:
    # A run that is terminated had started; its end is seen by on_failure.
    if terminated:
        return
    with guard("celery: task_revoked"):
        queue = queue_of(sender.app, request.delivery_info, request.headers)
        job = job_of(
            sender.name, request.id, queue, system(sender.app), request.headers, request.retries or 0, request.eta
        )
        outcome = Outcome.EXPIRED if expired else Outcome.REVOKED
        get_recorder().never_ran(job, outcome)


def worker_ready(sender: Any, **_kwargs: Any) -> None:
    with guard("celery: worker_ready"):
        app = sender.app
        consumed = set(app.amqp.queues.consume_from)
        for name in app.tasks:
            if name.startswith("celery."):
                continue
            queue = app.amqp.router.route({}, name).get("queue")
            if queue is not None and queue.name in consumed:
                get_recorder().tally.expect(name, queue.name)
