"""Every name that crosses a process border: instruments, attributes, events, headers.

Dashboards, alerts and documentation are made from this list, and a test compares it with what is really emitted. Names
follow the OpenTelemetry semantic conventions where these have one; what they lack starts with ``job.`` or ``otel_kit.``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Resource attributes
SERVICE_NAME: Final = "service.name"
SERVICE_NAMESPACE: Final = "service.namespace"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
ENVIRONMENT: Final = "deployment.environment.name"
HOST_NAME: Final = "host.name"
PROCESS_PID: Final = "process.pid"
DISTRO_NAME: Final = "telemetry.distro.name"
DISTRO_VERSION: Final = "telemetry.distro.version"
STREAM: Final = "otel_kit.stream"

# The kit itself
SIGNAL: Final = "otel_kit.signal"
CAUSE: Final = "otel_kit.cause"
COMPONENT_TYPE: Final = "otel.component.type"

# Messaging attributes (semantic conventions, in development)
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
ERROR_TYPE: Final = "error.type"

# Job attributes
JOB_NAME: Final = "job.name"
JOB_NAME_ORIGINAL: Final = "job.name.original"
JOB_ID: Final = "job.id"
JOB_ATTEMPT: Final = "job.attempt"
JOB_TRIGGER: Final = "job.trigger"
JOB_DELAY: Final = "job.delay"
JOB_WAIT: Final = "job.wait.duration"
JOB_DURATION: Final = "job.duration"
JOB_OUTCOME: Final = "job.outcome"
JOB_ERROR_FINGERPRINT: Final = "job.error.fingerprint"
JOB_ERROR_CATEGORY: Final = "job.error.category"
JOB_STATE: Final = "job.state"
JOB_STEP: Final = "job.step"
JOB_PROGRESS_FRACTION: Final = "job.progress"
JOB_PROGRESS_MESSAGE: Final = "job.progress.message"
JOB_WORKER_STATE: Final = "job.worker.state"
JOB_RECOVERY: Final = "job.recovery"
HEARTBEAT_SOURCE: Final = "source"
LABEL: Final = "otel_kit.label"

# Logs
LOG_CATEGORY: Final = "log.category"
LOG_SEVERITY: Final = "severity"
REQUEST_ID: Final = "request.id"
USER_ID: Final = "user.id"
AUDIT_ACTION: Final = "audit.action"

# Job events
JOB_CREATED: Final = "job.created"
JOB_STARTED: Final = "job.started"
JOB_COMPLETED: Final = "job.completed"
JOB_RETRIED: Final = "job.retried"
JOB_FAILED: Final = "job.failed"
JOB_LOST: Final = "job.lost"
JOB_EXPIRED: Final = "job.expired"
JOB_REVOKED: Final = "job.revoked"
JOB_REJECTED: Final = "job.rejected"
JOB_EXPECTED_ERROR: Final = "job.expected_error"
JOB_PROGRESS: Final = "job.progress"
JOB_MISSED: Final = "job.missed"
JOB_SKIPPED: Final = "job.skipped"
JOB_RECOVERED: Final = "job.recovered"

# Headers inside job carriers, beside traceparent, tracestate and baggage
ENQUEUED_AT_HEADER: Final = "otel-kit-enqueued-at"
QUEUE_HEADER: Final = "otel-kit-queue"
TRIGGER_HEADER: Final = "otel-kit-trigger"
PREVIOUS_ATTEMPT_HEADER: Final = "otel-kit-previous-attempt"
# More of them where the framework's own message says no such thing (RQ)
NAME_HEADER: Final = "otel-kit-name"
ATTEMPT_HEADER: Final = "otel-kit-attempt"
START_AT_HEADER: Final = "otel-kit-start-at"
LINKED_HEADER: Final = "otel-kit-linked"
WORKER_HEADER: Final = "otel-kit-worker"
SCHEDULE_HEADER: Final = "otel-kit-schedule"

#: Edges of job durations, seconds. Every alert threshold on a duration is an edge, so that no quantile is interpolated
#: across it.
DURATION_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
#: Edges of waits, seconds.
WAIT_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 180, 300, 600, 1800, 3600)


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric: its name, what kind of instrument, its unit (UCUM), what it means, its attributes.

    Attributes:
        kind: ``counter``, ``updowncounter``, ``histogram`` or ``gauge``.
        unit: As in the semantic conventions: seconds are ``s``, things counted stand in braces.
        buckets: Explicit edges of a histogram, in ``unit``.
    """

    name: str
    kind: str
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_MESSAGING = (MESSAGING_SYSTEM, MESSAGING_OPERATION_NAME, MESSAGING_DESTINATION, ERROR_TYPE)
_JOB = (JOB_NAME, MESSAGING_DESTINATION)

SENT_MESSAGES = Instrument(
    "messaging.client.sent.messages",
    "counter",
    "{message}",
    "Jobs handed to the broker, failed publishes included.",
    _MESSAGING,
)
CONSUMED_MESSAGES = Instrument(
    "messaging.client.consumed.messages", "counter", "{message}", "Deliveries of jobs to this worker.", _MESSAGING
)
DURATION = Instrument(JOB_DURATION, "histogram", "s", "How long a run took.", (*_JOB, JOB_OUTCOME), DURATION_BUCKETS)
WAIT = Instrument(
    JOB_WAIT, "histogram", "s", "From the moment a job could have started to its start.", _JOB, WAIT_BUCKETS
)
EXECUTIONS = Instrument("job.executions", "counter", "{execution}", "Runs by outcome.", (*_JOB, JOB_OUTCOME))
ERRORS = Instrument(
    "job.errors",
    "counter",
    "{error}",
    "Runs that ended with an error, by its type.",
    (JOB_NAME, ERROR_TYPE, JOB_ERROR_CATEGORY),
)
STEP_DURATION = Instrument(
    "job.step.duration", "histogram", "s", "How long a stage inside a job took.", (JOB_NAME, JOB_STEP), DURATION_BUCKETS
)
ACTIVE = Instrument("job.active", "gauge", "{job}", "Jobs that are running now.", _JOB)
OLDEST_ACTIVE = Instrument(
    "job.active.oldest_age", "gauge", "s", "For how long the oldest running job has been running.", _JOB
)
QUEUE_DEPTH = Instrument(
    "job.queue.depth",
    "gauge",
    "{job}",
    "Jobs in the queue by state: ready, scheduled, reserved by a worker, dead; in SQL tables also stuck, a part of reserved.",
    (MESSAGING_SYSTEM, MESSAGING_DESTINATION, JOB_STATE),
)
QUEUE_OLDEST = Instrument(
    "job.queue.oldest_age",
    "gauge",
    "s",
    "For how long the oldest ready job has been ready; 0 where none is.",
    (MESSAGING_SYSTEM, MESSAGING_DESTINATION),
)
WORKER_COUNT = Instrument(
    "job.worker.count",
    "gauge",
    "{worker}",
    "Slots that are busy or available.",
    (MESSAGING_DESTINATION, JOB_WORKER_STATE),
)
WORKER_SLOTS = Instrument(
    "job.worker.slots", "gauge", "{slot}", "Jobs that can run at the same time.", (MESSAGING_DESTINATION,)
)
WORKER_BUSY = Instrument(
    "job.worker.busy_time",
    "counter",
    "s",
    "Time that slots have been busy; its rate by the slots is the utilisation.",
    (MESSAGING_DESTINATION,),
)
WORKER_HEARTBEAT = Instrument(
    "job.worker.heartbeat.time",
    "gauge",
    "s",
    "When the worker's thread, or its event loop, last showed life (unix time).",
    (MESSAGING_DESTINATION, HEARTBEAT_SOURCE),
)
LAST_START = Instrument("job.last_start.time", "gauge", "s", "When a run last started (unix time).", (JOB_NAME,))
LAST_SUCCESS = Instrument("job.last_success.time", "gauge", "s", "When a run last succeeded (unix time).", (JOB_NAME,))
LAST_FAILURE = Instrument(
    "job.last_failure.time", "gauge", "s", "When a run last failed for good (unix time).", (JOB_NAME,)
)
DEADLINE = Instrument(
    "job.deadline.time",
    "gauge",
    "s",
    "By when the next success is due (unix time): the scheduled run after the last success, plus grace.",
    (JOB_NAME,),
)
MAX_RUNTIME = Instrument("job.max_runtime", "gauge", "s", "How long a run may take.", (JOB_NAME,))
CONSECUTIVE_FAILURES = Instrument(
    "job.consecutive_failures", "gauge", "{failure}", "Failures for good since the last success.", (JOB_NAME,)
)
RECOVERED = Instrument(
    "job.recovered",
    "counter",
    "{job}",
    "Lost jobs that came back: their worker was only cut off (returned), or somebody had them run again (requeued).",
    (JOB_NAME, JOB_RECOVERY),
)
LABEL_OVERFLOW = Instrument(
    "otel_kit.label.overflow",
    "counter",
    "{value}",
    "Uses of a job's or queue's name beyond the limit, which metrics file under _OTHER.",
    (LABEL,),
)
PROCESS_UP = Instrument(
    "otel_kit.process.up", "gauge", "", "1 while the process lives, 0 in the last flush of a clean shutdown."
)
LOG_RECORDS = Instrument(
    "otel_kit.log.records", "counter", "{record}", "Log records by severity and category.", (LOG_SEVERITY, LOG_CATEGORY)
)
# Of these the semantic conventions have a part (otel.sdk.*, in development).
SPAN_QUEUE_SIZE = Instrument(
    "otel.sdk.processor.span.queue.size", "updowncounter", "{span}", "Spans that wait to be packed.", (COMPONENT_TYPE,)
)
SPAN_QUEUE_CAPACITY = Instrument(
    "otel.sdk.processor.span.queue.capacity", "updowncounter", "{span}", "Spans that may wait.", (COMPONENT_TYPE,)
)
LOG_QUEUE_SIZE = Instrument(
    "otel.sdk.processor.log.queue.size",
    "updowncounter",
    "{log_record}",
    "Log records that wait to be packed.",
    (COMPONENT_TYPE,),
)
LOG_QUEUE_CAPACITY = Instrument(
    "otel.sdk.processor.log.queue.capacity",
    "updowncounter",
    "{log_record}",
    "Log records that may wait.",
    (COMPONENT_TYPE,),
)
EXPORT_DURATION = Instrument(
    "otel.sdk.exporter.operation.duration",
    "histogram",
    "s",
    "How long one attempt to send took.",
    (COMPONENT_TYPE, ERROR_TYPE),
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
QUEUE_BYTES = Instrument(
    "otel_kit.queue.size", "gauge", "By", "Memory that waiting spans or log records hold, about.", (SIGNAL,)
)
SPOOL_BYTES = Instrument(
    "otel_kit.spool.size", "gauge", "By", "What is kept until the collector answers again.", (SIGNAL,)
)
DELIVERED = Instrument(
    "otel_kit.delivered.items",
    "counter",
    "{item}",
    "Spans, data points and log records that the receiver took.",
    (SIGNAL,),
)
REPLAYED = Instrument(
    "otel_kit.replayed.items", "counter", "{item}", "Those of them that had been kept through an outage.", (SIGNAL,)
)
RESENT = Instrument(
    "otel_kit.resent.items",
    "counter",
    "{item}",
    "Sent again although the receiver may have them: the connection broke after the whole request had left.",
    (SIGNAL,),
)
DROPPED = Instrument(
    "otel_kit.dropped.items",
    "counter",
    "{item}",
    "Given up, by cause: queue_full, unencodable, too_large, refused, spool_full, expired, corrupt, exit.",
    (SIGNAL, CAUSE),
)

#: What this package emits itself.
INSTRUMENTS: Final = (
    SENT_MESSAGES,
    CONSUMED_MESSAGES,
    DURATION,
    WAIT,
    EXECUTIONS,
    ERRORS,
    STEP_DURATION,
    ACTIVE,
    OLDEST_ACTIVE,
    QUEUE_DEPTH,
    QUEUE_OLDEST,
    WORKER_COUNT,
    WORKER_SLOTS,
    WORKER_BUSY,
    WORKER_HEARTBEAT,
    LAST_START,
    LAST_SUCCESS,
    LAST_FAILURE,
    DEADLINE,
    MAX_RUNTIME,
    CONSECUTIVE_FAILURES,
    RECOVERED,
    LABEL_OVERFLOW,
    PROCESS_UP,
    LOG_RECORDS,
    SPAN_QUEUE_SIZE,
    SPAN_QUEUE_CAPACITY,
    LOG_QUEUE_SIZE,
    LOG_QUEUE_CAPACITY,
    EXPORT_DURATION,
    QUEUE_BYTES,
    SPOOL_BYTES,
    DELIVERED,
    REPLAYED,
    RESENT,
    DROPPED,
)

#: What the instrumentations that it wires emit, as far as dashboards and alerts use it.
UPSTREAM_INSTRUMENTS: Final = (
    Instrument(
        "http.server.request.duration",
        "histogram",
        "s",
        "How long the server took to answer.",
        ("http.request.method", "http.route", "http.response.status_code", "url.scheme", "error.type"),
    ),
    Instrument(
        "http.server.active_requests",
        "updowncounter",
        "{request}",
        "Requests in flight.",
        ("http.request.method", "url.scheme"),
    ),
    Instrument(
        "http.client.request.duration",
        "histogram",
        "s",
        "How long a dependency took to answer.",
        ("http.request.method", "http.response.status_code", "server.address", "error.type"),
    ),
)


def prometheus_name(instrument: Instrument) -> str:
    """The name under which Prometheus's OTLP receiver files an instrument (UnderscoreEscapingWithSuffixes).

    Histograms get ``_bucket``, ``_sum`` and ``_count`` behind it. Source of the rules: the OpenTelemetry
    specification, "Prometheus and OpenMetrics compatibility".
    """
    name = instrument.name.replace(".", "_")
    units = {"s": "seconds", "By": "bytes"}
    if instrument.unit == "1" and instrument.kind == "gauge":
        name += "_ratio"
    elif instrument.unit in units and not name.endswith(units[instrument.unit]):
        name += f"_{units[instrument.unit]}"
    if instrument.kind == "counter":
        name += "_total"
    return name


def prometheus_label(attribute: str) -> str:
    """The label that an attribute becomes."""
    return attribute.replace(".", "_")
