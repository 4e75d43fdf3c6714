"""Metrics out of spans, under the names that Grafana's service graph tab reads, and what the host layer adds."""

from __future__ import annotations

import uuid

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_kit.stack.query import poll
from tests.stack import otlp
from tests.stack.conftest import Stack


@pytest.fixture
def service() -> str:
    return f"derived-{uuid.uuid4().hex[:8]}"


def test_span_metrics_have_grafanas_names_seconds_and_exemplars(stack: Stack, service: str) -> None:
    span = otlp.span("GET /orders/{id}", seconds=0.7, attrs={"job.name": "import"})
    stack.sender.send(otlp.traces(service, [span]))
    calls = f'traces_spanmetrics_calls_total{{service_name="{service}"}}'
    (series,) = poll(lambda: stack.query.prom_query(calls), 20)
    labels = series["metric"]
    assert labels["span_name"] == "GET /orders/{id}"
    assert labels["span_kind"] == "SPAN_KIND_SERVER"
    assert labels["status_code"] == "STATUS_CODE_UNSET"
    assert labels["deployment_environment_name"] == "test"
    assert labels["service_namespace"] == "tests"
    assert labels["job_name"] == "import"

    buckets = f'traces_spanmetrics_latency_bucket{{service_name="{service}"'
    assert poll(lambda: stack.query.prom_value(f'{buckets}, le="1"}}'), 20) == 1
    assert stack.query.prom_value(f'{buckets}, le="0.5"}}') == 0
    exemplars = poll(lambda: stack.query.prom_exemplars(f"{buckets}}}"), 20)
    assert exemplars[0]["exemplars"][0]["labels"]["trace_id"] == span.trace_id.hex()


def test_instances_of_a_service_add_up(stack: Stack, service: str) -> None:
    for instance in ("one", "two", "three"):
        stack.sender.send(otlp.traces(service, [otlp.span()], {"service.instance.id": instance}))
    calls = f'traces_spanmetrics_calls_total{{service_name="{service}"}}'
    assert poll(lambda: stack.query.prom_value(calls) == 3, 20)
    (series,) = stack.query.prom_query(calls)
    assert "instance" not in series["metric"]


def test_a_call_between_services_is_an_edge_of_the_service_graph(stack: Stack, service: str) -> None:
    call = otlp.span("POST", kind=Span.SPAN_KIND_CLIENT)
    served = otlp.span("POST /pay", trace_id=call.trace_id, parent=call.span_id)
    stack.sender.send(otlp.traces(service, [call]))
    stack.sender.send(otlp.traces(f"{service}-pay", [served]))
    edge = f'{{client="{service}", server="{service}-pay"}}'
    assert poll(lambda: stack.query.prom_value(f"traces_service_graph_request_total{edge}"), 20) == 1
    assert poll(lambda: stack.query.prom_value(f"traces_service_graph_request_server_seconds_count{edge}"), 20) == 1


@pytest.mark.parametrize(
    "name",
    [
        "system_cpu_utilization_ratio",
        "system_memory_utilization_ratio",
        "system_filesystem_utilization_ratio",
        "system_cpu_load_average_1m",
        'httpcheck_status{http_status_class="2xx"}',
    ],
)
def test_the_host_and_the_probe_report(stack: Stack, name: str) -> None:
    (first, *_) = poll(lambda: stack.query.prom_query(name), 40)
    assert first["metric"]["service_name"] == "host"
    assert first["metric"]["deployment_environment_name"] == "development"


def test_prometheus_scrapes_every_part(stack: Stack) -> None:
    jobs = {"otelcol", "prometheus", "tempo", "loki"}
    up = poll(lambda: {e["metric"]["job"] for e in stack.query.prom_query("up == 1")} >= jobs, 40, interval=1.0)
    assert up


def test_resource_attributes_of_the_contract_are_labels(stack: Stack, service: str) -> None:
    stack.sender.send(otlp.metrics(service, [otlp.gauge("derived.gauge", 1)]))
    stack.sender.send(otlp.logs(service, [otlp.record("app"), otlp.record("who", attrs={"otel_kit.stream": "audit"})]))
    (series,) = poll(lambda: stack.query.prom_query(f'derived_gauge{{service_name="{service}"}}'), 20)
    contract = {
        "service_name": service,
        "service_namespace": "tests",
        "service_version": "1.2.3",
        "deployment_environment_name": "test",
        "job": f"tests/{service}",
        "instance": "one",
    }
    assert {key: series["metric"][key] for key in contract} == contract

    index = f'{{service_name="{service}", service_namespace="tests", deployment_environment_name="test"'
    (audit,) = poll(lambda: stack.query.loki_query(f'{index}, otel_kit_stream="audit"}}'), 20)
    (app,) = poll(lambda: stack.query.loki_query(f'{index}, otel_kit_stream="app"}}'), 20)
    assert (audit["line"], app["line"]) == ("who", "app")
