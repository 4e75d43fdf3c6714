"""The private parts of OpenTelemetry's packages that we lean on: an upgrade that changes one fails here, by name."""

from __future__ import annotations

import inspect
import threading

from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.sqlalchemy.engine import EngineTracer
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_kit.integrations.takeover import Takeover
from otel_kit.telemetry.metrics import reset_after_fork
from otel_kit.telemetry.resource import adopt_child


def test_a_meter_providers_totals_can_be_emptied() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    counter = provider.get_meter("m").create_counter("c")
    counter.add(7)
    assert "7" in repr(reader.get_metrics_data())
    consumer = provider._measurement_consumer
    held = consumer._lock
    held.acquire()  # as a thread of the parent may have done at the moment of the fork
    reset_after_fork(provider)
    counter.add(1)
    data = reader.get_metrics_data()
    assert data is not None
    [point] = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert point.value == 1
    provider.shutdown()


def test_a_periodic_readers_export_lock_is_where_we_replace_it() -> None:
    reader = PeriodicExportingMetricReader(ConsoleMetricExporter(), export_interval_millis=60_000)
    provider = MeterProvider([reader])
    assert isinstance(reader._export_lock, type(threading.Lock()))
    assert reader in provider._measurement_consumer._reader_storages
    reader._exporter.export = lambda *_args, **_kwargs: None
    provider.shutdown()


def test_an_sdk_that_has_changed_inside_costs_one_warning(caplog) -> None:  # type: ignore[no-untyped-def]
    reset_after_fork(object())  # type: ignore[arg-type]
    assert "this SDK has changed inside" in caplog.text


def test_providers_take_a_childs_process_id() -> None:
    providers = [
        TracerProvider(resource=Resource({})),
        MeterProvider(resource=Resource({})),
        LoggerProvider(resource=Resource({})),
    ]
    adopt_child(*providers)
    for provider in providers:
        assert callable(provider._update_resource)
        provider.shutdown()
    assert isinstance(providers[0].resource.attributes["process.pid"], int)


def test_an_exporters_preferences_are_where_we_read_them() -> None:
    exporter = ConsoleMetricExporter(preferred_temporality={}, preferred_aggregation={})
    assert exporter._preferred_temporality == {}
    assert exporter._preferred_aggregation == {}


def test_upstreams_instrumentors_are_singletons_that_can_be_taken_over() -> None:
    for kind in (CeleryInstrumentor, FastAPIInstrumentor):
        takeover = Takeover(kind.__module__, kind.__name__)
        takeover.begin()
        kind().instrument()
        assert not kind().is_instrumented_by_opentelemetry
        takeover.end()
        assert "instrument" not in vars(kind())


def test_the_engine_tracer_takes_what_we_give_it() -> None:
    assert list(inspect.signature(EngineTracer.__init__).parameters)[1:4] == ["tracer", "engine", "connections_usage"]
    assert callable(EngineTracer.remove_all_event_listeners)


def test_fastapis_instrumentation_takes_an_application_and_marks_it() -> None:
    import fastapi

    app = fastapi.FastAPI()
    FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"])
    assert app._is_instrumented_by_opentelemetry
    FastAPIInstrumentor.uninstrument_app(app)


def test_a_grpc_channel_tells_its_state_without_a_thread() -> None:
    import grpc

    channel = grpc.insecure_channel("127.0.0.1:1")
    assert isinstance(channel._channel.check_connectivity_state(False), int)
    channel.close()


def test_the_parts_of_http_that_an_attempt_watches_are_where_we_look() -> None:
    from http.client import HTTPConnection as Plain
    from http.client import HTTPResponse

    from urllib3.connection import HTTPConnection
    from urllib3.connectionpool import HTTPConnectionPool
    from urllib3.poolmanager import pool_classes_by_scheme

    assert issubclass(HTTPConnection, Plain)
    assert Plain.response_class is HTTPResponse
    assert callable(HTTPConnection._new_conn)
    assert HTTPConnectionPool.ConnectionCls is HTTPConnection
    assert pool_classes_by_scheme["http"] is HTTPConnectionPool


def test_an_otlp_metric_exporter_tells_what_the_environment_prefers(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import Counter
    from opentelemetry.sdk.metrics.export import AggregationTemporality

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "DELTA")
    exporter = OTLPMetricExporter(endpoint="http://127.0.0.1")
    assert exporter._preferred_temporality[Counter] is AggregationTemporality.DELTA
    assert isinstance(exporter._preferred_aggregation, dict)
    exporter.shutdown()
