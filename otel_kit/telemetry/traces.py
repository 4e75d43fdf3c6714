"""The tracer provider."""

from __future__ import annotations

import os
from importlib.metadata import entry_points

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator

from otel_kit.settings import Settings
from otel_kit.telemetry.export import GuardedSpanExporter, Outage, factories
from otel_kit.telemetry.redaction import Redactor
from otel_kit.telemetry.sampling import InheritingSampler


def build(settings: Settings, resource: Resource, redactor: Redactor, outage: Outage) -> TracerProvider:
    """A provider that exports as the settings say; sampler, limits and batching follow OTEL_*, read by the SDK itself."""
    # Its own exit hook waits without a limit; ours has one.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=_id_generator())
    provider.sampler = InheritingSampler(provider.sampler)
    for factory in factories(settings, "traces", settings.traces_exporter):
        provider.add_span_processor(BatchSpanProcessor(GuardedSpanExporter(factory, redactor, outage)))
    return provider


def _id_generator() -> IdGenerator | None:
    name = os.environ.get("OTEL_PYTHON_ID_GENERATOR", "random").strip()
    for entry in entry_points(group="opentelemetry_id_generator"):
        if entry.name == name:
            made: IdGenerator = entry.load()()
            return made
    return None
