"""Ids of spans that are known before the span is made: of a run whose process died before it could send it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace import SpanContext

_chosen: ContextVar[list[SpanContext]] = ContextVar("otel_kit_chosen_ids")


class ChosenIds(IdGenerator):
    """Gives the ids that `chosen` says, else those of another generator.

    Args:
        others: Where all other ids come from; random ones when left out.
    """

    def __init__(self, others: IdGenerator | None = None) -> None:
        self._others = others or RandomIdGenerator()

    def generate_trace_id(self) -> int:
        waiting = _chosen.get(None)
        return waiting[0].trace_id if waiting else self._others.generate_trace_id()

    def generate_span_id(self) -> int:
        waiting = _chosen.get(None)
        # Once: a second span of the same id would be taken for the first.
        return waiting.pop().span_id if waiting else self._others.generate_span_id()

    def is_trace_id_random(self) -> bool:
        return self._others.is_trace_id_random()


@contextmanager
def chosen(context: SpanContext | None) -> Iterator[None]:
    """Give the next span that is started here the span id of ``context``, and its trace id where it has no parent."""
    token = _chosen.set([context] if context is not None and context.is_valid else [])
    try:
        yield
    finally:
        _chosen.reset(token)
