"""The process that does the work: ``task_prerun`` to ``task_postrun``."""

from __future__ import annotations

import time
from typing import Any

from opentelemetry.trace import SpanContext

from otel_kit.guard import guard
from otel_kit.integrations.celery.messages import job_of_task
from otel_kit.jobs.model import Outcome
from otel_kit.jobs.recorder import Run, get_recorder
from otel_kit.lifecycle import lifecycle

#: Celery's states at the end of a run; any other means that it was cut off.
_OUTCOMES = {
    "SUCCESS": Outcome.SUCCESS,
    "IGNORED": Outcome.SUCCESS,
    "FAILURE": Outcome.FAILURE,
    "RETRY": Outcome.RETRY,
    "REJECTED": Outcome.REJECTED,
}

# Runs of this process by task id: signals know nothing else of each other.
_runs: dict[str, Run] = {}
_errors: dict[str, BaseException] = {}


def attempt(task_id: str) -> SpanContext | None:
    """The run of this task that is under way in this process, which a retry links to."""
    run = _runs.get(task_id)
    return run.context if run is not None else None


def prerun(task_id: str, task: Any, **_kwargs: Any) -> None:
    with guard("celery: task_prerun"):
        job = job_of_task(task, task_id)
        _runs[task_id] = get_recorder().start(job)
        if task.request.is_eager:
            get_recorder().tally.started(job, time.time())


def postrun(task_id: str, task: Any, state: str | None = None, **_kwargs: Any) -> None:
    with guard("celery: task_postrun"):
        run = _runs.pop(task_id, None)
        error = _errors.pop(task_id, None)
        if run is None:
            return
        if state not in _OUTCOMES:
            # The process was told to exit in the middle of the run. A pool's main process sees that and records it.
            if lifecycle.forked_at is not None:
                run.abandon()
                return
            error = error or SystemExit("told to exit")
        outcome = _OUTCOMES.get(state or "", Outcome.LOST)
        expected = isinstance(error, tuple(task.throws or ()))
        try:
            run.finish(outcome, error, expected=expected)
        finally:
            if task.request.is_eager:
                get_recorder().tally.finished(run.job, outcome, run.duration, error)


def failure(task_id: str, exception: BaseException, **_kwargs: Any) -> None:
    if task_id in _runs:
        _errors[task_id] = exception


def retry(request: Any, reason: Any, **_kwargs: Any) -> None:
    if request.id in _runs:
        cause, original = getattr(reason, "exc", None), reason.__context__
        # Celery keeps the nearest class that can be pickled; what was raised may still be at hand.
        if cause is not None and isinstance(original, type(cause)):
            cause = original
        if isinstance(cause, BaseException):
            _errors[request.id] = cause


def begins(**_kwargs: Any) -> None:
    lifecycle.pooled = True


def ends(**_kwargs: Any) -> None:
    # The child leaves by os._exit: nothing else would send what it still holds (contrib#4916).
    with guard("celery: flushing a pool process"):
        lifecycle.close(lifecycle.timeout)
