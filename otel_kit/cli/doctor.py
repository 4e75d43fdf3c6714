"""`otel-kit doctor`: what is installed, what would be wired, and whether telemetry gets through."""

from __future__ import annotations

import logging
import time
from importlib.metadata import entry_points, version

import click
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console
from rich.table import Table

from otel_kit import settings as options
from otel_kit.integrations import registry
from otel_kit.telemetry import transport
from otel_kit.telemetry.encoding import encode
from otel_kit.telemetry.payload import Verdict


@click.command()
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for the collector.")
def doctor(timeout: float) -> None:
    """Check this environment: versions, instrumentations, settings, and a test span to the collector.

    Exits with 1 when the collector cannot be reached.
    """
    console = Console()
    settings = options.read({})
    console.print(_versions())
    console.print(_instrumentations(settings))
    if "otlp" not in settings.traces_exporter:
        console.print(
            f"OTEL_TRACES_EXPORTER={','.join(settings.traces_exporter)}: no collector is used", highlight=False
        )
        return
    endpoint = transport.destination(settings, "traces").shown
    problem, took = _send_span(settings, timeout)
    if problem:
        console.print(f"[red]✗[/] {endpoint} does not take telemetry: {problem}", highlight=False)
        console.print(
            "  Start a collector with `otel-kit stack up`, or set OTEL_EXPORTER_OTLP_ENDPOINT.", highlight=False
        )
        raise SystemExit(1)
    console.print(f"[green]✓[/] {endpoint} took a span in {took * 1000:.0f} ms", highlight=False)


def _versions() -> Table:
    table = Table("package", "version", title="Installed", title_justify="left")
    for name in ("otel-kit", "opentelemetry-sdk", "opentelemetry-instrumentation"):
        table.add_row(name, version(name))
    return table


def _instrumentations(settings: options.Settings) -> Table:
    table = Table("instrumentation", "package", "state", title="What configure() would wire", title_justify="left")
    for entry in sorted(entry_points(group=registry.GROUP), key=lambda entry: entry.name):
        name = entry.dist.name if entry.dist else ""
        if entry.name in registry.SUPERSEDED:
            state = "otel-kit's own stands in"
        elif not registry.wanted(entry.name, settings.disabled_instrumentations):
            state = "switched off" if entry.name != "logging" else "wired by otel-kit itself"
        else:
            state = "wired" if registry.available(entry) else "its library is not installed"
        table.add_row(entry.name, name, state)
    return table


def _send_span(settings: options.Settings, timeout: float) -> tuple[str, float]:
    logging.getLogger("otel_kit").setLevel(logging.CRITICAL)
    way = transport.build(settings, "traces")
    if way is None:
        return "the library for this protocol is not installed", 0.0
    made = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "otel-kit-doctor"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(made))
    provider.get_tracer("otel_kit.doctor").start_span("doctor").end()
    [payload] = encode("traces", made.get_finished_spans()).payloads
    began = time.monotonic()
    answer = way.send(payload.body, timeout)
    way.close()
    return "" if answer.verdict is Verdict.DELIVERED else answer.reason or "no answer", time.monotonic() - began
