"""configure() and shutdown() in real processes."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from otel_kit.testing import OtlpSink
from tests.integration.conftest import Programs, eventually, free_port

WORK = """
import logging
import otel_kit
from opentelemetry import metrics, trace
otel_kit.configure("shop", environment="test", service_version="1.2.3")
with trace.get_tracer("shop").start_as_current_span("work"):
    logging.getLogger("shop").error("went wrong")
    metrics.get_meter("shop").create_counter("orders").add(3)
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_an_endpoint_may_come_without_a_scheme(programs: Programs, sink: OtlpSink, protocol: str) -> None:
    endpoint = str(sink.grpc_endpoint if protocol == "grpc" else sink.endpoint).removeprefix("http://")
    ran = programs.run(
        WORK,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        OTEL_EXPORTER_OTLP_INSECURE="true",
    )
    assert (ran.returncode, len(sink.spans), len(sink.logs)) == (0, 1, 1), ran.stderr


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_one_line_sends_three_signals_and_the_normal_end_flushes_them(
    programs: Programs, sink: OtlpSink, protocol: str
) -> None:
    endpoint = sink.grpc_endpoint if protocol == "grpc" else sink.endpoint
    ran = programs.run(
        WORK,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_ENDPOINT=str(endpoint),
        OTEL_METRIC_EXPORT_INTERVAL="60000",
        OTEL_BSP_SCHEDULE_DELAY="60000",
        OTEL_BLRP_SCHEDULE_DELAY="60000",
    )
    assert ran.returncode == 0, ran.stderr
    [span] = sink.spans
    [record] = sink.logs
    assert (span.service, span.name) == ("shop", "work")
    assert (record.body, record.severity) == ("went wrong", "ERROR")
    assert (record.trace_id, record.span_id) == (span.trace_id, span.span_id)
    assert record.resource["otel_kit.stream"] == "app"
    assert [point.value for point in sink.points if point.name == "orders"] == [3]
    # The last word of a process that leaves in peace.
    assert [point.value for point in sink.points if point.name == "otel_kit.process.up"] == [0]
    for name, value in {
        "service.version": "1.2.3",
        "deployment.environment.name": "test",
        "telemetry.distro.name": "otel-kit",
    }.items():
        assert span.resource[name] == value
    assert {"service.instance.id", "host.name", "process.pid"} <= set(span.resource)


def test_without_a_collector_one_warning_is_said_and_the_application_works(programs: Programs) -> None:
    ran = programs.run(
        WORK
        + """
import time
deadline = time.monotonic() + 3
while time.monotonic() < deadline:
    with trace.get_tracer("shop").start_as_current_span("work"):
        logging.getLogger("shop").info("still here")
    time.sleep(0.02)
print("done")
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
        OTEL_KIT_SHUTDOWN_TIMEOUT="1",
    )
    assert ran.returncode == 0
    assert ran.stdout == "done\n"
    warnings = [line for line in ran.stderr.splitlines() if line != "went wrong"]
    assert len(warnings) == 1, ran.stderr
    assert "do not reach http://127.0.0.1:" in warnings[0]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("way_out", ["end", "sigterm", "exception", "sys.exit"])
def test_a_dead_collector_costs_the_end_no_more_than_the_budget(
    programs: Programs, protocol: str, way_out: str
) -> None:
    endings = {
        "end": "",
        "sigterm": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "exception": "raise RuntimeError('application')",
        "sys.exit": "import sys; sys.exit(3)",
    }
    began = time.monotonic()
    ran = programs.run(
        WORK
        + """
for _ in range(3000):
    trace.get_tracer("shop").start_span("queued").end()
import time
print(time.time(), flush=True)
"""
        + endings[way_out],
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}",
        OTEL_KIT_SHUTDOWN_TIMEOUT="1",
    )
    took = time.time() - float(ran.stdout)
    assert ran.returncode == {"end": 0, "sigterm": -signal.SIGTERM, "exception": 1, "sys.exit": 3}[way_out]
    # A second of budget, and room for a busy machine; the SDK left alone takes 10 s for each signal and more.
    assert took < 8, f"{took:.1f} s of {time.monotonic() - began:.1f} s"


def test_a_second_configure_changes_nothing_and_says_so(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(WORK + "otel_kit.configure('other'); otel_kit.configure(); otel_kit.configure('shop')")
    assert ran.returncode == 0
    assert ran.stderr.count("configure('other') changes nothing") == 1
    assert {span.service for span in sink.spans} == {"shop"}
    assert len(sink.spans) == 1


def test_a_wrong_option_raises_and_names_it(programs: Programs) -> None:
    ran = programs.run("import otel_kit; otel_kit.configure('shop', protocol='tcp')")
    assert ran.returncode == 1
    assert "ConfigurationError: option protocol='tcp' is not accepted; accepted: http/protobuf or grpc" in ran.stderr


def test_a_wrong_variable_is_named_and_does_not_stop_the_service(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(WORK, OTEL_EXPORTER_OTLP_PROTOCOL="tcp", OTEL_TRACES_EXPORTER="otlp,zipkinn")
    assert ran.returncode == 0
    assert "OTEL_EXPORTER_OTLP_PROTOCOL='tcp' is not accepted; accepted: http/protobuf or grpc" in ran.stderr
    assert "names 'zipkinn', which no installed package offers; accepted: console, none, otlp" in ran.stderr
    assert len(sink.spans) == 1


def test_variables_of_the_specification_are_honoured(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(
        WORK.replace('"shop", environment="test", service_version="1.2.3"', ""),
        OTEL_SERVICE_NAME="named-outside",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=staging,team=core,host.name=stated",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_TRACES_SAMPLER="always_off",
        OTEL_METRICS_EXPORTER="none",
    )
    assert ran.returncode == 0, ran.stderr
    assert sink.spans == []
    assert sink.points == []
    [record] = sink.logs
    assert record.service == "named-outside"
    assert record.resource["deployment.environment.name"] == "staging"
    assert record.resource["team"] == "core"
    assert record.resource["host.name"] == "stated"


def test_a_signal_can_have_an_endpoint_of_its_own(programs: Programs, sink: OtlpSink) -> None:
    with OtlpSink() as other:
        ran = programs.run(WORK, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{other.endpoint}/v1/traces")
        assert ran.returncode == 0, ran.stderr
        assert len(other.spans) == 1
    assert sink.spans == []
    assert len(sink.logs) == 1


def test_a_disabled_sdk_sends_nothing(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(WORK, OTEL_SDK_DISABLED="true")
    assert (ran.returncode, sink.spans, sink.logs, sink.points) == (0, [], [], [])


def test_secrets_are_gone_from_every_signal(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(
        """
import logging
import otel_kit
from opentelemetry import metrics, trace
otel_kit.configure("shop", redact_keys=["iban"])
with trace.get_tracer("shop").start_as_current_span("GET /x?token=hunter2", attributes={"db.password": "hunter2"}) as span:
    span.add_event("login", {"authorization": "Bearer hunter2hunter2"})
    try:
        raise RuntimeError("cannot reach postgres://bob:hunter2@db/shop")
    except RuntimeError as error:
        logging.getLogger("shop").exception("failed: %s", error, extra={"iban": "hunter2", "nested": {"api_key": "hunter2"}})
        span.record_exception(error)
        span.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))
    metrics.get_meter("shop").create_counter("logins").add(1, {"session_token": "hunter2"})
    otel_kit.audit("login", password="hunter2", user="bob")
""",
        OTEL_RESOURCE_ATTRIBUTES="deploy.token=hunter2,team=core",
    )
    assert ran.returncode == 0, ran.stderr
    assert (len(sink.spans), len(sink.logs)) == (1, 2)
    assert sink.points
    everything = repr([(item, item.resource) for item in (*sink.spans, *sink.logs, *sink.points)])
    assert "hunter2" not in everything
    assert everything.count("[redacted]") > 10
    assert sink.spans[0].resource["team"] == "core"


def test_audit_records_have_a_stream_of_their_own_and_no_level_drops_them(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(
        """
import logging
import otel_kit
from opentelemetry import trace
otel_kit.configure("shop", log_level="critical")
logging.getLogger().setLevel(logging.CRITICAL)
with trace.get_tracer("shop").start_as_current_span("admin"):
    otel_kit.audit("user.deleted", actor="u1", target="u2")
"""
    )
    assert ran.returncode == 0, ran.stderr
    [record] = sink.logs
    assert record.resource["otel_kit.stream"] == "audit"
    assert record.attributes == {
        "audit.action": "user.deleted",
        "actor": "u1",
        "target": "u2",
        "log.category": "audit",
    }
    assert record.trace_id == sink.spans[0].trace_id


def test_an_instrumentation_that_fails_is_named_and_the_rest_go_on(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(
        """
import logging
import httpx
from opentelemetry.instrumentation.redis import RedisInstrumentor
def fails(self, **kwargs):
    raise RuntimeError("broken on purpose")
RedisInstrumentor._instrument = fails
import otel_kit
otel_kit.configure("shop")
try:
    httpx.get("http://127.0.0.1:9/x")
except httpx.ConnectError:
    print("went on")
"""
    )
    assert ran.stdout == "went on\n"
    assert ran.stderr.count("instrumentation 'redis' failed and is left out") == 1
    assert [span.name for span in sink.spans] == ["GET"]


def test_instrumentations_can_be_switched_off(programs: Programs, sink: OtlpSink) -> None:
    script = """
import httpx, otel_kit
otel_kit.configure("shop")
try:
    httpx.get("http://127.0.0.1:9/x")
except httpx.ConnectError:
    pass
"""
    assert programs.run(script, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="redis,httpx").returncode == 0
    assert programs.run(script, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="*").returncode == 0
    assert sink.spans == []


def test_importing_the_package_loads_no_framework_and_no_sdk_exporter(programs: Programs) -> None:
    ran = programs.run(
        """
import sys
import otel_kit
names = ("celery", "kombu", "fastapi", "starlette", "redis", "sqlalchemy", "httpx", "requests", "click", "rich", "grpc")
print([name for name in names if name in sys.modules])
"""
    )
    assert ran.stdout == "[]\n"


def test_a_forked_child_counts_from_zero_and_under_its_own_process_id(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(
        WORK
        + """
import os
otel_kit.flush()
orders = metrics.get_meter("shop").create_counter("orders")
child = os.fork()
if child == 0:
    orders.add(1)
    with trace.get_tracer("shop").start_as_current_span("in child"):
        pass
    otel_kit.flush()
    os._exit(0)
os.waitpid(child, 0)
orders.add(1)
print(os.getpid(), child)
"""
    )
    assert ran.returncode == 0, ran.stderr
    parent, child = map(int, ran.stdout.split())
    counted: dict[object, list[float]] = {}
    for point in sink.points:
        if point.name == "orders":
            counted.setdefault(point.resource.get("process.pid"), []).append(point.value)
    assert max(counted[parent]) == 4
    # A child's series outlives it: its successor goes on with it, under another process id.
    assert counted[None] == [1]
    [span] = [span for span in sink.spans if span.name == "in child"]
    assert span.resource["process.pid"] == child
    assert len({item.resource["service.instance.id"] for item in sink.spans}) == 2
    assert len({point.resource["service.instance.id"] for point in sink.points}) == 2


def test_an_outage_that_ends_is_said_once_each_way(programs: Programs) -> None:
    port = free_port()
    programs.write(
        "loop",
        """
import time, otel_kit
from opentelemetry import trace
otel_kit.configure("shop")
while True:
    trace.get_tracer("shop").start_span("tick").end()
    time.sleep(0.05)
""",
    )
    process = programs.start(
        sys.executable,
        "loop.py",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )
    eventually(lambda: "do not reach" in programs.output(process))
    receiver = OtlpSink(port)
    receiver.start()
    try:
        receiver.wait_for(lambda s: s.spans, 15)
        eventually(lambda: "reaches http" in programs.output(process))
        programs.stop(process)
    finally:
        receiver.stop()
    output = programs.output(process)
    assert output.count("do not reach") == 1
    assert output.count("again after") == 1
    assert len(output.splitlines()) == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5000"),
        ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "5000"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "-1"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "x"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "bogus"),
        ("OTEL_PROPAGATORS", "bogus"),
        ("OTEL_TRACES_SAMPLER", "bogus"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "bogus"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "x"),
    ],
)
def test_a_variable_that_the_sdk_refuses_stops_neither_the_service_nor_the_other_signals(
    programs: Programs, sink: OtlpSink, variable: str, value: str
) -> None:
    ran = programs.run(WORK + "print('works')", **{variable: value})
    assert (ran.returncode, ran.stdout) == (0, "works\n"), ran.stderr
    arrived = [bool(sink.spans), bool(sink.logs), any(point.name == "orders" for point in sink.points)]
    assert sum(arrived) >= (1 if "ATTRIBUTE" in variable else 2), ran.stderr


def test_a_receiver_that_refuses_one_signal_for_ever_costs_one_warning(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(
        WORK
        + """
import time
deadline = time.monotonic() + 3
while time.monotonic() < deadline:
    with trace.get_tracer("shop").start_as_current_span("work"):
        logging.getLogger("shop").info("x")
    time.sleep(0.02)
""",
        OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=f"{sink.endpoint}/not/here",
    )
    assert ran.returncode == 0
    assert len(sink.spans) > 50
    assert "log records dropped (refused)" in ran.stderr
    assert f"{sink.endpoint}/not/here says 404" in ran.stderr
    assert ran.stderr.count("otel-kit:") == 1, ran.stderr


def test_our_warnings_show_no_credentials_and_survive_a_configuration_that_disables_all_loggers(
    programs: Programs,
) -> None:
    ran = programs.run(
        """
import logging.config, otel_kit
from opentelemetry import trace
otel_kit.configure("shop")
logging.config.dictConfig({"version": 1})
trace.get_tracer("shop").start_span("x").end()
otel_kit.flush(2)
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://bob:hunter2@127.0.0.1:{free_port()}",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
        OTEL_KIT_SHUTDOWN_TIMEOUT="0.5",
    )
    assert "do not reach http://127.0.0.1:" in ran.stderr
    assert "hunter2" not in ran.stderr
    ran = programs.run("import otel_kit; otel_kit.configure('x', headers={'authorization': 'Bearer hunter2', 'y': ''})")
    # Python 3.13 shows the script's own line above it.
    message = ran.stderr.splitlines()[-1]
    assert "option headers={'authorization': '...', 'y': '...'} is not accepted" in message
    assert "hunter2" not in message
