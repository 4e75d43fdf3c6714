"""configure() and shutdown(): named steps, none of which knows the next."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_kit import catalogue
from otel_kit.guard import guard
from otel_kit.integrations import registry
from otel_kit.jobs.recorder import get_recorder
from otel_kit.lifecycle import lifecycle
from otel_kit.settings import Settings, read, without_credentials
from otel_kit.telemetry import export, logs, propagators, resource, traces
from otel_kit.telemetry import metrics as metric_pipeline
from otel_kit.telemetry.redaction import Redactor

_logger = logging.getLogger(__name__)


# Reentrant: SIGTERM may arrive in the middle of configure().
_lock = threading.RLock()
_running: Settings | None = None
_ended = False


def configure(service_name: str | None = None, *, instrument: bool = True, **options: Any) -> None:
    """Start traces, metrics and logs, and wire every supported library that is installed.

    One call per process, as early as possible; further calls change nothing. Without a collector the application runs as
    ever and one warning says so.

    Args:
        service_name: The service's name; OTEL_SERVICE_NAME when left out.
        instrument: Whether libraries are wired. Zero-code start leaves that to its own loader.
        **options: See `otel_kit.settings.Settings`; durations in seconds.

    Raises:
        ConfigurationError: An option that does not exist or a value that it does not take; the message names both.
    """
    global _running
    settings = read({"service_name": service_name, **options})
    with _lock:
        if _running is not None:
            asked, runs = settings.service_name, _running.service_name
            if service_name is not None and asked != runs:
                _logger.warning("otel-kit: already running as %r; configure(%r) changes nothing", runs, asked)
            return
        if settings.disabled:
            _logger.info("otel-kit: OTEL_SDK_DISABLED=true, no telemetry")
            return
        _prefer_stable_conventions()
        _running = settings
        _start(settings)
    if instrument:
        with guard("wiring the installed libraries"):
            registry.instrument_all(settings.disabled_instrumentations)


def _prefer_stable_conventions() -> None:
    # Read once, by the first instrumentation that loads. A choice that is made already stands.
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")


def _start(settings: Settings) -> None:
    # A step that fails, over a variable that the SDK does not take for instance, is named and leaves the others on.
    redactor = Redactor(settings.redact_keys)
    destination = export.endpoint_of(settings, "traces", settings.protocol).removesuffix("/v1/traces")
    outage = export.Outage(without_credentials(destination))
    lifecycle.on_close(export.hush_upstream(outage))
    lifecycle.on_child("outage", outage.reset_after_fork)
    described = Resource.get_empty()
    with guard("describing this process"):
        described = resource.build(settings, redactor)
    with guard("starting propagation"):
        propagators.install()
    with guard("starting traces"):
        _start_traces(settings, described, redactor, outage)
    with guard("starting metrics"):
        _start_metrics(settings, described, redactor, outage)
    with guard("starting logs"):
        _start_logs(settings, described, redactor, outage)
    with guard("starting jobs"):
        _start_jobs(settings)
    lifecycle.on_child("configuration", _renew_lock)
    lifecycle.timeout = settings.shutdown_timeout
    lifecycle.on_exit(lambda: _ignore(shutdown(settings.shutdown_timeout)))
    lifecycle.watch_sigterm()


def _start_traces(settings: Settings, described: Resource, redactor: Redactor, outage: export.Outage) -> None:
    provider = traces.build(settings, described, redactor, outage)
    trace.set_tracer_provider(provider)
    lifecycle.on_flush("traces", lambda timeout: _finish(provider, timeout))
    lifecycle.on_child("traces", lambda: resource.adopt_child(provider))


def _start_metrics(settings: Settings, described: Resource, redactor: Redactor, outage: export.Outage) -> None:
    provider = metric_pipeline.build(settings, described, redactor, outage)
    metrics.set_meter_provider(provider)
    metric_pipeline.observed_gauge(catalogue.PROCESS_UP, lambda: [(0.0 if lifecycle.closing else 1.0, {})])
    lifecycle.on_flush("metrics", lambda timeout: _finish_metrics(provider, settings.metric_interval, timeout))
    lifecycle.on_child("metrics", lambda: metric_pipeline.reset_after_fork(provider))
    lifecycle.on_child("metrics' resource", lambda: resource.adopt_child(provider))


def _start_logs(settings: Settings, described: Resource, redactor: Redactor, outage: export.Outage) -> None:
    provider, fields = logs.build(settings, described, redactor, outage)
    set_logger_provider(provider)
    metric_pipeline.observed_counter(catalogue.LOG_RECORDS, fields.counts)
    lifecycle.on_flush("logs", lambda timeout: _finish(provider, timeout))
    lifecycle.on_child("logs", fields.reset_after_fork)
    lifecycle.on_child("logs' resource", lambda: resource.adopt_child(provider))
    if settings.capture_logs:
        level = logging.getLevelNamesMapping()[settings.log_level.upper()]
        capture = logs.Capture(provider, level, code_attributes=settings.log_code_attributes)
        lifecycle.on_close(logs.install(capture))


def _start_jobs(settings: Settings) -> None:
    recorder = get_recorder()
    recorder.policy = settings.job_trace
    lifecycle.on_child("jobs", recorder.reset_after_fork)


def _finish(provider: TracerProvider | MeterProvider | LoggerProvider, timeout: float) -> None:
    """Flush a provider, or end it when the process does. Its own answer says nothing (opentelemetry-python#4568)."""
    if lifecycle.closing:
        provider.shutdown()
    else:
        provider.force_flush(int(timeout * 1000))


def _finish_metrics(provider: MeterProvider, interval: float, timeout: float) -> None:
    # A pool that recycles its processes would leave one set of series for each of them; its main process counts for them.
    born = lifecycle.forked_at
    if lifecycle.closing and lifecycle.pooled and born is not None and time.monotonic() - born < interval:
        return
    _finish(provider, timeout)


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # a thread of the parent may have held it


def _ignore(_result: object) -> None:
    """An exit hook has nobody to tell."""


def flush(timeout: float = 5.0) -> bool:
    """Send what is waiting, all signals at once.

    Args:
        timeout: Seconds to wait in all.

    Returns:
        Whether everything was handed over in time.
    """
    return lifecycle.flush(timeout)


def shutdown(timeout: float = 5.0) -> bool:
    """Say goodbye: mark the process as leaving and send what is waiting. Called by itself at the process's normal end.

    Args:
        timeout: Seconds to wait in all, all signals together.

    Returns:
        Whether everything was handed over in time.
    """
    global _ended
    with _lock:
        if _running is None:
            return True
        if _ended:
            return True
        _ended = True
    return lifecycle.close(timeout)
