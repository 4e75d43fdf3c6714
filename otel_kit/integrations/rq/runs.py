"""The runs that are under way in this process, by the job's id: what publishes a job anew wants to know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opentelemetry.trace import SpanContext

from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import Run


@dataclass(slots=True)
class State:
    """What becomes known of a run while RQ works it through.

    Attributes:
        job: The attempt that runs.
        run: Where this process runs the job; None in a worker whose horse does.
        context: The run's span.
        error: What the job raised.
        outcome: What RQ makes of it, as soon as that shows; None: by whether `perform_job` says that it went well.
    """

    job: Job
    run: Run | None
    context: SpanContext | None
    error: BaseException | None = None
    outcome: Outcome | None = None


_states: dict[str, State] = {}


def begin(job_id: str, state: State) -> None:
    """A run is under way."""
    _states[job_id] = state


def end(job_id: str) -> None:
    """It is over."""
    _states.pop(job_id, None)


def attempt(job_id: str) -> int | None:
    """Which attempt is under way here."""
    state = _states.get(job_id)
    return state.job.attempt if state is not None else None


def of(job: Any) -> State | None:
    """The run of this job that is under way here."""
    return _states.get(job.id)


def context(job_id: str) -> SpanContext | None:
    """The span of the run that is under way here."""
    state = _states.get(job_id)
    return state.context if state is not None else None


def retried(job_id: str) -> None:
    """RQ runs the job again. A run that is lost stays so."""
    state = _states.get(job_id)
    if state is not None and state.outcome is None:
        state.outcome = Outcome.RETRY
