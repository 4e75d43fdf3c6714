"""`make bench`: one trivial FastAPI request, in process, in three variants.

Each variant runs in a process of its own, the variants take turns for several rounds, and the best round of each counts:
the machine's other work shows in the rounds, not in the ratio.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict

from otel_kit.testing import OtlpSink

ROUNDS = 5
REQUESTS = 3000

VARIANTS = {
    "bare": "",
    "upstream": """
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
traces = TracerProvider()
traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(traces)
metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
FastAPIInstrumentor().instrument()
""",
    "otel-kit": "import otel_kit; otel_kit.configure('bench')",
}

SCRIPT = """
import asyncio, os, sys, time
os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http"
{setup}
from fastapi import FastAPI
app = FastAPI()

@app.get("/items/{{item}}")
async def item(item: int):
    return {{"item": item}}

scope = {{
    "type": "http", "asgi": {{"version": "3.0"}}, "http_version": "1.1", "method": "GET", "scheme": "http",
    "path": "/items/1", "raw_path": b"/items/1", "query_string": b"", "root_path": "",
    "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
}}

async def receive():
    return {{"type": "http.request", "body": b"", "more_body": False}}

async def send(message):
    pass

async def main():
    for _ in range(300):
        await app(dict(scope), receive, send)
    began = time.perf_counter()
    for _ in range({requests}):
        await app(dict(scope), receive, send)
    print((time.perf_counter() - began) / {requests} * 1e6)

asyncio.run(main())
"""


def main() -> None:
    """Measure and print."""
    best: dict[str, float] = defaultdict(lambda: float("inf"))
    with OtlpSink() as sink:
        environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}
        for _ in range(ROUNDS):
            for name, setup in VARIANTS.items():
                script = SCRIPT.format(setup=setup, requests=REQUESTS)
                command = [sys.executable, "-c", script]
                ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)  # noqa: S603
                best[name] = min(best[name], float(ran.stdout))
    print(f"One FastAPI request in process, best of {ROUNDS} rounds of {REQUESTS}, exported over OTLP:")
    for name, microseconds in best.items():
        print(f"  {name:10} {microseconds:7.0f} us   {microseconds / best['bare']:4.1f} x bare")


if __name__ == "__main__":
    main()
