"""The ids of a run's span, chosen before it starts: by the main process of a pool, for the child that runs it.

So the main process's metrics lead to the run by their exemplars, and where the child is killed the span that is made in its
stead has the very ids that its logs carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry.trace import SpanContext, TraceFlags

from otel_kit.guard import guard
from otel_kit.jobs import propagation
from otel_kit.jobs.model import Job
from otel_kit.jobs.recorder import get_recorder
from otel_kit.telemetry.ids import chosen

#: Where the ids stand on their way to the child, which no broker and no other host ever sees.
KEY: Final = "otel-kit-run"


def choose(job: Job, request_dict: dict[str, Any]) -> SpanContext:
    """Choose a run's ids and have them handed to whoever runs it."""
    span = propagation.choose_ids(job, get_recorder().policy)
    request_dict[KEY] = (span.trace_id, span.span_id)
    return span


@contextmanager
def chosen_run(request: Any) -> Iterator[None]:
    """Give the run that starts here the ids that were chosen for it, if any were."""
    context = None
    with guard("celery: reading a run's ids"):
        headers = request.headers
        # Taken out: a retry would copy it into its message.
        said = headers.pop(KEY, None) if isinstance(headers, dict) else None
        vars(request).pop(KEY, None)
        if isinstance(said, tuple):
            trace_id, span_id = said
            context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    with chosen(context):
        yield


def forget(headers: Mapping[str, Any]) -> None:
    """Drop what somebody may have copied out of a running task's request."""
    if isinstance(headers, dict):
        headers.pop(KEY, None)
