"""The tracer provider."""

from __future__ import annotations

import os
from importlib.metadata import entry_points

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator

from otel_kit.settings import Settings
from otel_kit.telemetry.export import GuardedSpanExporter, factory, named
from otel_kit.telemetry.ids import ChosenIds
from otel_kit.telemetry.otlp import Otlp, is_otlp
from otel_kit.telemetry.redaction import Redactor
from otel_kit.telemetry.sampling import InheritingSampler


def build(settings: Settings, resource: Resource, redactor: Redactor, otlp: Otlp) -> TracerProvider:
    """A provider that exports as the settings say; sampler, limits and batching follow OTEL_*, read by the SDK itself."""
    # Its own exit hook waits without a limit; ours has one.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=ChosenIds(_id_generator()))
    provider.sampler = InheritingSampler(provider.sampler)
    for name in named(settings.traces_exporter):
        if is_otlp(name):
            processor: SpanProcessor | None = otlp.spans(name)
        else:
            make = factory("traces", name)
            processor = BatchSpanProcessor(GuardedSpanExporter(make, redactor)) if make is not None else None
        if processor is not None:
            provider.add_span_processor(processor)
    return provider


def _id_generator() -> IdGenerator | None:
    name = os.environ.get("OTEL_PYTHON_ID_GENERATOR", "random").strip()
    for entry in entry_points(group="opentelemetry_id_generator"):
        if entry.name == name:
            made: IdGenerator = entry.load()()
            return made
    return None
