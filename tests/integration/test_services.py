"""A FastAPI service under uvicorn: with our line, without it, early or late; its databases and clients."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import httpx
import pytest

from otel_kit.testing import MetricPoint, OtlpSink
from tests.integration.conftest import BIN, Programs, eventually, free_port

APP = """
import logging
{before}
from fastapi import FastAPI
app = FastAPI()
{after}

@app.get("/items/{{item}}")
def item(item: int):
    logging.getLogger("shop").warning("asked for %s", item)
    return {{"item": item}}

@app.get("/boom")
def boom():
    raise RuntimeError("boom")
"""
ECHO = """
from fastapi import Request
@app.get("/headers")
def headers(request: Request):
    return dict(request.headers)
"""
OUR_LINE = "import otel_kit; otel_kit.configure('shop')"


def _serve(programs: Programs, *command: str, **environment: str) -> str:
    port = free_port()
    process = programs.start(*command, "--port", str(port), **environment)
    url = f"http://127.0.0.1:{port}"

    def up() -> bool:
        assert process.poll() is None, programs.output(process)
        try:
            return httpx.get(f"{url}/items/1").status_code == 200
        except httpx.ConnectError:
            return False

    eventually(up, 30)
    return url


@pytest.mark.parametrize(
    ("before", "after", "command"),
    [
        (OUR_LINE, "", [sys.executable, "-m", "uvicorn"]),
        ("", OUR_LINE, [sys.executable, "-m", "uvicorn"]),
        ("", "", [str(BIN / "opentelemetry-instrument"), sys.executable, "-m", "uvicorn"]),
        ("", "", [str(BIN / "opentelemetry-instrument"), str(BIN / "uvicorn")]),
        ("", "", [str(BIN / "otel-kit"), "run", "--service-name", "shop", "--", str(BIN / "uvicorn")]),
    ],
    ids=[
        "our line first",
        "our line after the app",
        "opentelemetry-instrument python",
        "opentelemetry-instrument",
        "run",
    ],
)
def test_a_service_sends_traces_metrics_and_logs(
    programs: Programs, sink: OtlpSink, before: str, after: str, command: list[str]
) -> None:
    programs.write("app", APP.format(before=before, after=after))
    url = _serve(programs, *command, "app:app", OTEL_SERVICE_NAME="shop", OTEL_BSP_SCHEDULE_DELAY="60000")
    httpx.get(f"{url}/boom")
    assert programs.stop(programs.running[0]) == -signal.SIGTERM
    assert [(span.service, span.kind, span.name, span.status) for span in sink.spans] == [
        ("shop", "SERVER", "GET /items/{item}", "UNSET"),
        ("shop", "SERVER", "GET /boom", "ERROR"),
    ], programs.output(programs.running[0])
    first, failed = sink.spans
    assert first.attributes["http.route"] == "/items/{item}"
    assert first.attributes["http.response.status_code"] == 200
    assert failed.attributes["error.type"]
    [record] = [record for record in sink.logs if record.body == "asked for 1"]
    assert (record.trace_id, record.span_id) == (first.trace_id, first.span_id)
    assert [record.severity for record in sink.logs if "Exception in ASGI" in str(record.body)] == ["ERROR"]
    counted = {
        p.attributes["http.route"]: (p.count, p.unit) for p in sink.points if p.name == "http.server.request.duration"
    }
    assert counted == {"/items/{item}": (1, "s"), "/boom": (1, "s")}


def test_upstreams_fastapi_instrumentation_is_taken_off_in_either_order(programs: Programs, sink: OtlpSink) -> None:
    theirs = "from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor as T; T().instrument()"
    programs.write("early", APP.format(before=f"{theirs}\n{OUR_LINE}", after=""))
    programs.write("late", APP.format(before=f"{OUR_LINE}\n{theirs}", after=""))
    for module in ("early", "late"):
        _serve(programs, sys.executable, "-m", "uvicorn", f"{module}:app")
        programs.stop(programs.running[-1])
    assert [span.name for span in sink.spans] == ["GET /items/{item}"] * 2


@pytest.mark.parametrize("created", ["before", "after"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_every_engine_is_traced_once_on_sqlite_and_postgresql(
    programs: Programs, sink: OtlpSink, postgres_url: str, created: str, kind: str
) -> None:
    postgres = postgres_url.format("+asyncpg" if kind == "async" else "+psycopg").partition("?")
    sqlite = "sqlite+aiosqlite://" if kind == "async" else "sqlite://"
    # The package gives a socket's directory; asyncpg takes it by another name.
    host = "?host=" + dict(pair.split("=", 1) for pair in postgres[2].split("&"))["host"] if postgres[2] else ""
    urls = [sqlite, postgres[0] + host]
    configure = "import otel_kit\notel_kit.configure('shop')\n"
    engines = f"""
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from opentelemetry import trace
import asyncio
make = create_async_engine if {kind == "async"} else create_engine
engines = [make(url) for url in {urls!r}]
"""
    work = """
def work():
    for engine in engines:
        for _ in range(2):
            with engine.connect() as connection:
                connection.execution_options(note=1).execute(text("SELECT 1"))

async def awork():
    for engine in engines:
        for _ in range(2):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        await engine.dispose()

with trace.get_tracer("t").start_as_current_span("request"):
    asyncio.run(awork()) if hasattr(engines[0], "sync_engine") else work()
"""
    ran = programs.run(engines + configure + work if created == "before" else configure + engines + work)
    assert ran.returncode == 0, ran.stderr
    [request] = [span for span in sink.spans if span.name == "request"]
    queries = [span for span in sink.spans if span.attributes.get("db.query.text") == "SELECT 1"]
    assert [span.attributes["db.system.name"] for span in queries] == ["sqlite"] * 2 + ["postgresql"] * 2
    assert {span.parent_id for span in queries} == {request.span_id}
    assert {span.kind for span in queries} == {"CLIENT"}


def test_clients_carry_the_trace_on(programs: Programs, sink: OtlpSink, tmp_path: Path) -> None:
    programs.write("app", APP.format(before=OUR_LINE, after=""))
    url = _serve(programs, sys.executable, "-m", "uvicorn", "app:app")
    ran = programs.run(
        f"""
import asyncio, httpx, requests
import otel_kit
from opentelemetry import trace
otel_kit.configure("caller")
with trace.get_tracer("t").start_as_current_span("call"):
    requests.get("{url}/items/7?token=hunter2")
    httpx.get("{url}/items/8")
    async def go():
        async with httpx.AsyncClient() as client:
            await client.get("{url}/items/9")
    asyncio.run(go())
"""
    )
    assert ran.returncode == 0, ran.stderr
    programs.stop(programs.running[0])
    [call] = [span for span in sink.spans if span.name == "call"]
    clients = [span for span in sink.spans if span.kind == "CLIENT"]
    servers = [span for span in sink.spans if span.kind == "SERVER" and span.trace_id == call.trace_id]
    assert {span.parent_id for span in clients} == {call.span_id}
    assert {span.parent_id for span in servers} == {span.span_id for span in clients}
    assert (len(clients), len(servers)) == (3, 3)
    assert "hunter2" not in repr(sink.spans)


def test_a_mounted_application_is_measured_once(programs: Programs, sink: OtlpSink) -> None:
    mounted = "sub = FastAPI()\nsub.get('/deep')(lambda: 1)\napp.mount('/sub', sub)"
    programs.write("app", APP.format(before=OUR_LINE, after=mounted))
    url = _serve(programs, sys.executable, "-m", "uvicorn", "app:app")
    assert httpx.get(f"{url}/sub/deep").status_code == 200
    programs.stop(programs.running[0])
    assert len([span for span in sink.spans if span.attributes.get("url.path") == "/sub/deep"]) == 1
    assert sum(p.count for p in _last(sink, "http.server.request.duration")) == 2
    assert {span.kind for span in sink.spans} == {"SERVER"}


def _last(sink: OtlpSink, name: str) -> list[MetricPoint]:
    latest = {repr(p.attributes): p for p in sorted(sink.points, key=lambda p: p.time) if p.name == name}
    return list(latest.values())


def test_identities_do_not_come_in_from_outside_and_baggage_does_not_go_out(programs: Programs, sink: OtlpSink) -> None:
    programs.write("app", APP.format(before=OUR_LINE, after=ECHO))
    url = _serve(programs, sys.executable, "-m", "uvicorn", "app:app")
    for request_id in ("r-1", "x" * 129, "a%20b"):
        httpx.get(f"{url}/items/7", headers={"baggage": f"user.id=admin,request.id={request_id},tenant=t1"})
    ran = programs.run(
        f"""
import httpx, otel_kit
from opentelemetry import baggage, context
otel_kit.configure("caller")
context.attach(baggage.set_baggage("user.id", "u1"))
print(httpx.get("{url}/headers").json())
"""
    )
    assert "baggage" not in ran.stdout
    assert "traceparent" in ran.stdout
    programs.stop(programs.running[0])
    asked = [record.attributes for record in sink.logs if record.body == "asked for 7"]
    assert [attributes.get("request.id") for attributes in asked] == ["r-1", None, None]
    assert all("user.id" not in attributes for attributes in asked)
