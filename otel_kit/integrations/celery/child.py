"""The process that does the work: ``task_prerun`` to ``task_postrun``."""

from __future__ import annotations

import sys
from typing import Any

from opentelemetry import context as otel_context

from otel_kit.guard import guard
from otel_kit.integrations.celery import worker
from otel_kit.integrations.celery.messages import expected, is_plumbing, job_of_task
from otel_kit.integrations.celery.run_ids import chosen_run
from otel_kit.jobs import propagation
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

# Signals know nothing else of each other. By the request, which is one object from the first to the last of them and in one
# thread or greenlet: a task's id may be there twice, when an eager task retries inside itself or a message comes once more.
_runs: dict[int, Run] = {}
_errors: dict[int, BaseException] = {}
_passing: dict[int, Any] = {}


def prerun(task: Any, **_kwargs: Any) -> None:
    with guard("celery: task_prerun"):
        request = task.request
        if is_plumbing(task.name):
            if not request.is_eager:
                _passing[id(request)] = otel_context.attach(propagation.extract(job_of_task(task, request)))
            return
        job = job_of_task(task, request)
        with chosen_run(request):
            _runs[id(request)] = get_recorder().start(job, counted=bool(request.is_eager))


def postrun(task: Any, state: str | None = None, **_kwargs: Any) -> None:
    with guard("celery: task_postrun"):
        key = id(task.request)
        passing = _passing.pop(key, None)
        if passing is not None:
            otel_context.detach(passing)
            return
        run = _runs.pop(key, None)
        error = _errors.pop(key, None)
        if run is None:
            return
        if state in _OUTCOMES:
            run.finish(_OUTCOMES[state], error, expected=isinstance(error, expected(task)))
        elif lifecycle.pooled:
            # The process was told to exit in the middle of the run. The pool's main process sees that and records it.
            run.abandon()
        else:
            cut_off = sys.exc_info()[1] or SystemExit("told to exit")
            outcome = worker.outcome_of_cut(run.job)
            run.finish(outcome, cut_off)
            if not task.request.is_eager:
                worker.cut_off(run.job, outcome, cut_off, run.duration)


def failure(sender: Any, exception: BaseException, **_kwargs: Any) -> None:
    # Fired in a worker's main process too, for what has befallen a run elsewhere: that has no run here.
    key = id(sender.request)
    if key in _runs:
        _errors[key] = exception


def retry(request: Any, reason: Any = None, **_kwargs: Any) -> None:
    if id(request) in _runs:
        cause, original = getattr(reason, "exc", None), getattr(reason, "__context__", None)
        # Celery keeps the nearest class that can be pickled; what was raised may still be at hand.
        if cause is not None and isinstance(original, type(cause)):
            cause = original
        if isinstance(cause, BaseException):
            _errors[id(request)] = cause


def begins(**_kwargs: Any) -> None:
    from billiard import current_process

    # The solo pool says so too, of the main process that it works in.
    lifecycle.pooled = current_process().name != "MainProcess"


def ends(**_kwargs: Any) -> None:
    # The child leaves by os._exit: nothing else would send what it still holds (contrib#4916).
    with guard("celery: flushing a pool process"):
        lifecycle.close(lifecycle.timeout)
