"""A decision about a trace that was made elsewhere, and that a new trace is to inherit.

A job that is linked to its producer starts a trace of its own. Left to the sampler it would be decided anew: at one percent,
nearly every retry would vanish whose first attempt was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

_DECISION: Final = create_key("otel-kit-sampling-decision")


def with_decision(sampled: bool, context: Context | None = None) -> Context:
    """A context whose next span is sampled, or is not, whatever the sampler would say."""
    return set_value(_DECISION, sampled, context)


def without_decision(context: Context) -> Context:
    """The context after that span has started: what is inside it follows its parent."""
    return set_value(_DECISION, None, context)


class InheritingSampler(Sampler):
    """Follows a decision that the context carries, else asks the sampler that is configured."""

    def __init__(self, configured: Sampler) -> None:
        self._configured = configured

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide about one span."""
        decided = get_value(_DECISION, parent_context) if parent_context is not None else None
        if decided is None:
            return self._configured.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if decided:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        """Name both."""
        return f"Inheriting({self._configured.get_description()})"
