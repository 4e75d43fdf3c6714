"""Where the job runs: in a work horse, a process for one job that leaves by os._exit, or in the worker itself.

`BaseWorker.perform_job` is all of the run: what RQ prepares, the job, its callbacks, and what RQ makes of the result. A horse's
run is counted by its worker, which outlives it; a `SimpleWorker`, and a queue that runs its jobs at once, count themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit.guard import guard
from otel_kit.integrations.rq import messages, runs, schedules, supervision
from otel_kit.integrations.rq.faults import RetriesExhaustedError
from otel_kit.integrations.rq.report import Report
from otel_kit.integrations.rq.runs import State
from otel_kit.integrations.rq.silence import hearing
from otel_kit.jobs.decorator import declaration
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import get_recorder
from otel_kit.lifecycle import lifecycle
from otel_kit.telemetry.ids import chosen


def perform_job(wrapped: Callable[..., Any], worker: Any, args: Any, kwargs: Any) -> Any:
    """One run from beginning to end."""
    job = args[0] if args else kwargs["job"]
    begun: list[State] = []
    with guard("rq: the start of a run"):
        begun.append(_begin(worker, job))
    if not begun:
        return wrapped(*args, **kwargs)
    state = begun[0]
    ended: BaseException | None = None
    done = False
    try:
        with suppress_instrumentation():
            done = bool(wrapped(*args, **kwargs))
        return done
    except BaseException as error:
        ended = error  # RQ itself failed, at Redis for instance
        raise
    finally:
        with guard("rq: the end of a run"):
            _end(job, state, done, ended)
        if worker.is_horse:
            _leave(state)


def _begin(worker: Any, job: Any) -> State:
    delivered = messages.job_of(job, taken=True)
    context = None
    if worker.is_horse:
        context = supervision.in_horse()
    else:
        schedules.learn(job, delivered)
        get_recorder().tally.received(delivered)
    with chosen(context):
        run = get_recorder().start(delivered, counted=not worker.is_horse)
    state = State(delivered, run, run.context)
    runs.begin(job.id, state)
    return state


def _end(job: Any, state: State, done: bool, ended: BaseException | None) -> None:
    runs.end(job.id)
    run = state.run
    if run is None:
        return
    error = state.error if state.error is not None else ended
    outcome = state.outcome
    if outcome is None:
        outcome = Outcome.SUCCESS if done else Outcome.FAILURE
    if outcome is Outcome.FAILURE and _is_unreadable(error):
        outcome = Outcome.REJECTED
    said = None if outcome is Outcome.SUCCESS else error
    run.finish(outcome, said, expected=_is_expected(job, said))
    state.outcome, state.error = outcome, said


def _is_unreadable(error: BaseException | None) -> bool:
    from rq.exceptions import DeserializationError

    return isinstance(error, DeserializationError)


def _is_expected(job: Any, error: BaseException | None) -> bool:
    if error is None or isinstance(error, RetriesExhaustedError) or _is_unreadable(error):
        return False
    declared = None
    with guard("rq: asking what a job expects"):
        try:
            declared = declaration(job.func)
        except Exception:  # noqa: BLE001 - it could not be imported: that is the error at hand
            return False
    return declared is not None and isinstance(error, declared.expected)


def _leave(state: State) -> None:
    """A horse leaves by os._exit right after this: nothing else would send what it still holds."""
    run, outcome = state.run, state.outcome
    with guard("rq: flushing a work horse"):
        if run is not None and outcome is not None and supervision.orphaned():
            # Nobody is left to count it.
            lifecycle.pooled = False
            tally = get_recorder().tally
            tally.started(run.job, time.time() - run.duration)
            tally.finished(run.job, outcome, run.duration, state.error)
        lifecycle.close(lifecycle.timeout)
    with guard("rq: reporting a run"):
        if run is not None and outcome is not None:
            supervision.report(Report(outcome, run.duration, state.error))


def execute(wrapped: Callable[..., Any], job: Any, args: Any, kwargs: Any) -> Any:
    """The application's function. What it does with Redis is heard, in the middle of RQ's silence."""
    state = runs.of(job)
    if state is None or state.run is None:
        return wrapped(*args, **kwargs)
    try:
        with hearing():
            return wrapped(*args, **kwargs)
    except BaseException as error:
        state.error = error
        raise


def handle_exception(wrapped: Callable[..., Any], _worker: Any, args: Any, kwargs: Any) -> Any:
    """RQ learns of an error: the job's own, or one of a callback's or of RQ's."""
    with guard("rq: an error"):
        state = runs.of(args[0])
        if state is not None and state.error is None and len(args) > 2 and isinstance(args[2], BaseException):
            state.error = args[2]
    with hearing():
        return wrapped(*args, **kwargs)


def handle_job_retry(wrapped: Callable[..., Any], _worker: Any, args: Any, kwargs: Any) -> Any:
    """The job returned `rq.Retry`; RQ runs it again, or has had enough."""
    result = wrapped(*args, **kwargs)
    with guard("rq: a job that returned Retry"):
        job = args[0] if args else kwargs["job"]
        state = runs.of(job)
        if state is not None and state.outcome is None:
            state.outcome = Outcome.FAILURE
            state.error = RetriesExhaustedError("the job returned Retry and has no attempts left")
    return result


def run_job(wrapped: Callable[..., Any], _queue: Any, args: Any, kwargs: Any) -> Any:
    """A queue with ``is_async=False`` runs its jobs there and then: no broker, no message, and a part of what calls it."""
    job = args[0] if args else kwargs["job"]
    begun: list[State] = []
    with guard("rq: the start of a run"):
        here = Job(messages.name_of_new(job), job.id)
        run = get_recorder().start(here, counted=True)
        begun.append(State(here, run, run.context))
        runs.begin(job.id, begun[0])
    if not begun:
        return wrapped(*args, **kwargs)
    state = begun[0]
    ended: BaseException | None = None
    try:
        with suppress_instrumentation():
            return wrapped(*args, **kwargs)
    except BaseException as error:
        ended = error
        raise
    finally:
        with guard("rq: the end of a run"):
            _end(job, state, ended is None, ended)
