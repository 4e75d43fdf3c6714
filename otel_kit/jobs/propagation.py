"""How a trace goes on in a job: as a child of the publish, or as a trace of its own with a link to it."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from itertools import islice
from typing import Final

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_kit import catalogue
from otel_kit.jobs.model import Job, Trigger
from otel_kit.telemetry.plain import encodable, text_of
from otel_kit.telemetry.propagators import Texts, propagate
from otel_kit.telemetry.sampling import with_decision

# Inside our own queues baggage travels whole; over HTTP it does not (otel_kit.telemetry.propagators).
_baggage = W3CBaggagePropagator()
_texts = Texts()
_ids: Final = RandomIdGenerator()
#: W3C's limit of entries: more are not read.
_MAX_ENTRIES: Final = 180
_SERVING = create_key("otel-kit-serving-request")


def inject(carrier: MutableMapping[str, str], trigger: Trigger, previous: SpanContext | None = None) -> None:
    """Write the current context into a job's headers: trace, baggage, time of enqueueing, trigger, the attempt before.

    Headers that a retry has copied from the attempt before are replaced, not kept.
    """
    for name in (*fields(), catalogue.PREVIOUS_ATTEMPT_HEADER):
        carrier.pop(name, None)
    propagate.inject(carrier)
    _inject_baggage(carrier)
    carrier[catalogue.ENQUEUED_AT_HEADER] = repr(time.time())
    carrier[catalogue.TRIGGER_HEADER] = trigger.value
    if previous is not None and previous.is_valid:
        carrier[catalogue.PREVIOUS_ATTEMPT_HEADER] = (
            f"00-{previous.trace_id:032x}-{previous.span_id:016x}-{previous.trace_flags:02x}"
        )


def _inject_baggage(carrier: MutableMapping[str, str]) -> None:
    try:
        _baggage.inject(carrier)
    except Exception:  # noqa: BLE001 - an entry that cannot be written as it is: the others go as they are
        readable = Context()
        for name, value in islice(baggage.get_all().items(), _MAX_ENTRIES):
            readable = baggage.set_baggage(encodable(text_of(name)), encodable(text_of(value)), readable)
        _baggage.inject(carrier, readable)


def fields() -> set[str]:
    """The header names that the configured propagators use."""
    return {*propagate.get_global_textmap().fields, *_baggage.fields}


def extract(job: Job) -> Context:
    """The context that the producer sent along; an empty one when there is none."""
    trace_context: Context = propagate.extract(job.carrier, context=Context(), getter=_texts)
    return _baggage.extract(job.carrier, trace_context, _texts)


def previous_attempt(job: Job) -> SpanContext | None:
    """The run before this one, if this is a retry that knows it."""
    header = _texts.get(job.carrier, catalogue.PREVIOUS_ATTEMPT_HEADER)
    if not header:
        return None
    # The same format as traceparent, read by the same, tested parser.
    found = TraceContextTextMapPropagator().extract({"traceparent": header[0]}, context=Context())
    span = trace.get_current_span(found).get_span_context()
    return span if span.is_valid else None


def continues_trace(job: Job, policy: str) -> bool:
    """Whether the run is a child of the publish.

    In ``auto`` a first attempt that was not delayed on purpose is: its wait is part of the story. A retry or a delayed job
    would stretch the trace over minutes or days, and starts one of its own.
    """
    if policy == "auto":
        return job.attempt == 1 and not job.delayed
    return policy == "parent"


def start_context(job: Job, policy: str) -> tuple[Context, list[Link]]:
    """Where the run's span starts, and what it links to. A linked root inherits its producer's sampling decision."""
    sent = extract(job)
    producer = trace.get_current_span(sent).get_span_context()
    if not job.system and not producer.is_valid:
        # No broker, no message: it is called here and now, and belongs to whatever calls it.
        return otel_context.get_current(), []
    before = previous_attempt(job)
    links = [Link(before)] if before is not None else []
    if continues_trace(job, policy):
        return sent, links
    # Baggage stays, the parent goes.
    root = trace.set_span_in_context(trace.INVALID_SPAN, sent)
    if producer.is_valid:
        links.insert(0, Link(producer))
        root = with_decision(producer.trace_flags.sampled, root)
    return root, links


def choose_ids(job: Job, policy: str) -> SpanContext:
    """The ids of a run's span before it starts, for a process that hands the run to another and outlives it.

    Whoever runs it uses them (`otel_kit.telemetry.ids.chosen`). So the survivor's metrics lead to the run by their exemplars,
    and the span that is made in a dead run's stead has the very ids that its log records carry.
    """
    context, _links = start_context(job, policy)
    parent = trace.get_current_span(context).get_span_context()
    producer = trace.get_current_span(extract(job)).get_span_context()
    return SpanContext(
        parent.trace_id if parent.is_valid else _ids.generate_trace_id(),
        _ids.generate_span_id(),
        is_remote=True,
        trace_flags=producer.trace_flags if producer.is_valid else TraceFlags(TraceFlags.SAMPLED),
    )


def serving(context: Context | None = None) -> Context:
    """A context that knows that it answers a request, however deep inside and whether the trace is sampled or not."""
    return set_value(_SERVING, True, context)


def trigger_of_current_work() -> Trigger:
    """What is publishing now: an API that answers a request, or something else."""
    current = otel_context.get_current()
    server = getattr(trace.get_current_span(current), "kind", None) is SpanKind.SERVER
    return Trigger.API if server or get_value(_SERVING, current) else Trigger.MANUAL
