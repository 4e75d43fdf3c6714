"""configure() and shutdown(): named steps, none of which knows the next."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any, Final

from opentelemetry import metrics, trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_kit import catalogue
from otel_kit.guard import guard
from otel_kit.integrations import registry, servers
from otel_kit.jobs import decorator, leases, names, schedule
from otel_kit.jobs.memory import JobMemory
from otel_kit.jobs.queues import reporter as queue_reporter
from otel_kit.jobs.recorder import get_recorder
from otel_kit.lifecycle import lifecycle
from otel_kit.settings import Settings, read
from otel_kit.telemetry import attributes, instruments, logs, propagators, reentrancy, resource, traces
from otel_kit.telemetry import metrics as metric_pipeline
from otel_kit.telemetry.otlp import Otlp
from otel_kit.telemetry.payload import Signal
from otel_kit.telemetry.redaction import Redactor

_logger = logging.getLogger(__name__)


# Reentrant: SIGTERM may arrive in the middle of configure().
_lock = threading.RLock()
_running: Settings | None = None
#: Share of the budget that the last collection of metrics waits for spans and log records to be gone.
_METRICS_WAIT: Final = 0.6
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
    described = Resource.get_empty()
    with guard("describing this process"):
        described = resource.build(settings, redactor)
    otlp = Otlp(settings, described, redactor)
    lifecycle.on_child("delivery", otlp.reset_after_fork)
    lifecycle.on_close(otlp.abandon)
    with guard("starting propagation"):
        propagators.install()
    with guard("bounding attributes"):
        lifecycle.on_close(attributes.install())
        reentrancy.install()
    with guard("starting traces"):
        _start_traces(settings, described, redactor, otlp)
    with guard("starting metrics"):
        _start_metrics(settings, described, redactor, otlp)
    with guard("starting logs"):
        _start_logs(settings, described, redactor, otlp)
    with guard("starting jobs"):
        _start_jobs(settings, redactor)
    with guard("remembering jobs"):
        _start_memory(otlp.folder / "jobs" if otlp.folder is not None else None)
    with guard("starting leases"):
        registry.keep_leases()
    with guard("starting delivery"):
        otlp.observe()
        otlp.start()
    lifecycle.on_renewal(otlp.renew)
    servers.install()
    lifecycle.on_child("configuration", _renew_lock)
    lifecycle.follow_forks()
    lifecycle.timeout = settings.shutdown_timeout
    lifecycle.on_exit(lambda: _ignore(shutdown(settings.shutdown_timeout)))
    lifecycle.watch_sigterm()


def _start_traces(settings: Settings, described: Resource, redactor: Redactor, otlp: Otlp) -> None:
    provider = traces.build(settings, described, redactor, otlp)
    trace.set_tracer_provider(provider)
    lifecycle.on_flush("traces", lambda timeout: _finish(provider, otlp, "traces", timeout))
    lifecycle.on_child("traces", lambda: resource.adopt_child(provider))


def _start_metrics(settings: Settings, described: Resource, redactor: Redactor, otlp: Otlp) -> None:
    provider = metric_pipeline.build(settings, described, redactor, otlp)
    metrics.set_meter_provider(provider)
    instruments.observed_gauge(catalogue.PROCESS_UP, lambda: [(0.0 if lifecycle.closing else 1.0, {})])
    lifecycle.on_flush("metrics", lambda timeout: _finish_metrics(provider, otlp, settings.metric_interval, timeout))
    lifecycle.on_child("metrics", lambda: metric_pipeline.reset_after_fork(provider))
    lifecycle.on_renewal(lambda: metric_pipeline.renew(provider))
    lifecycle.on_child("metrics' resource", lambda: resource.adopt_child(provider))


def _start_logs(settings: Settings, described: Resource, redactor: Redactor, otlp: Otlp) -> None:
    provider, fields = logs.build(settings, described, redactor, otlp)
    set_logger_provider(provider)
    instruments.observed_counter(catalogue.LOG_RECORDS, fields.counts)
    lifecycle.on_flush("logs", lambda timeout: _finish(provider, otlp, "logs", timeout))
    lifecycle.on_child("logs", fields.reset_after_fork)
    lifecycle.on_child("logs' resource", lambda: resource.adopt_child(provider))
    if settings.capture_logs:
        level = logging.getLevelNamesMapping()[settings.log_level.upper()]
        capture = logs.Capture(provider, level, code_attributes=settings.log_code_attributes)
        lifecycle.on_close(logs.install(capture))


def _start_jobs(settings: Settings, redactor: Redactor) -> None:
    recorder = get_recorder()
    recorder.policy = settings.job_trace
    names.limit(settings.name_limit)
    schedule.use_timezone(settings.timezone)
    leases.configure(settings, redactor)
    queue_reporter.configure(settings.metric_interval, settings.queue_metrics)
    lifecycle.on_child("jobs", recorder.reset_after_fork)
    lifecycle.on_child("queues", queue_reporter.reset_after_fork)
    lifecycle.on_renewal(queue_reporter.renew)


def _start_memory(folder: Path | None) -> None:
    if folder is not None:
        history = get_recorder().tally.history
        memory = JobMemory(folder)
        history.remember(memory.load())
        history.on_change.append(memory.record)
        lifecycle.on_flush("memory", lambda _timeout: memory.save())
        lifecycle.on_child("memory", memory.reset_after_fork)
        lifecycle.on_renewal(memory.renew)
    decorator.announce()


def _finish(
    provider: TracerProvider | MeterProvider | LoggerProvider, otlp: Otlp, signal: Signal, timeout: float
) -> bool:
    """Flush one signal, or end it when the process does.

    A provider's own answer says nothing (opentelemetry-python#4568). It is asked first for what it still holds, and that
    never waits for a network on our road.
    """
    deadline = time.monotonic() + timeout
    if not lifecycle.closing:
        try:
            provider.force_flush(int(timeout * 1000))
        except Exception:  # noqa: BLE001 - so a meter provider says that it had too little time
            return False
        return otlp.flush(signal, deadline - time.monotonic())
    if lifecycle.outlived:
        # A child's last words wait on disk for its parent to send: a collector that is down costs no job its budget.
        otlp.hand_over(signal)
    provider.shutdown()
    return otlp.close(signal, deadline - time.monotonic())


def _finish_metrics(provider: MeterProvider, otlp: Otlp, interval: float, timeout: float) -> bool:
    # Without a place that its successor could take, each process of a pool that recycles them would leave a set of series
    # of its own; the pool's main process counts the jobs for them.
    born = lifecycle.forked_at
    young = born is not None and time.monotonic() - born < interval
    if lifecycle.closing and lifecycle.pooled and young and not otlp.continues:
        return True
    began = time.monotonic()
    if lifecycle.closing:
        # What the other signals lose at the end is part of what the last collection has to tell.
        otlp.wait_closed(("traces", "logs"), timeout * _METRICS_WAIT)
    return _finish(provider, otlp, "metrics", timeout - (time.monotonic() - began))


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
