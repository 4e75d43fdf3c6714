"""Signals of services: requests by rate, errors and duration; log errors; the processes themselves."""

from __future__ import annotations

from typing import Final

from otel_kit.dashboards import links
from otel_kit.dashboards.datasources import LOKI, TEMPO
from otel_kit.dashboards.metrics import metric
from otel_kit.dashboards.signals import BY_SERVICE, SERVICES, Query, Signal, Thresholds, zero_when_empty

_LEGEND: Final = "{{service_name}} {{deployment_environment_name}}"
_SERVICE: Final = "${__field.labels.service_name}"

#: Seconds without telemetry from which a process that did not say goodbye counts as gone. Twelve export intervals.
SILENT_AFTER: Final = 120

_COUNT: Final = metric("http.server.request.duration", "count")
_BUCKET: Final = metric("http.server.request.duration", "bucket")
_UP: Final = metric("otel_kit.process.up")
_RECORDS: Final = metric("otel_kit.log.records")
_SEVERE: Final = 'severity=~"ERROR|FATAL"'

_requests = f"sum by ({BY_SERVICE}) (rate({_COUNT}{{{SERVICES}}}[$__rate_interval]))"
_failed = f'sum by ({BY_SERVICE}) (rate({_COUNT}{{{SERVICES}, http_response_status_code=~"5.."}}[$__rate_interval]))'

_SLOW_TRACES = links.traces(
    "Slowest traces of this service", f'{{ resource.service.name = "{_SERVICE}" && kind = server && duration > 1s }}'
)
_FAILED_TRACES = links.traces(
    "Failed traces of this service", f'{{ resource.service.name = "{_SERVICE}" && status = error }}'
)
_ERROR_LOGS = links.logs("Errors in the logs of this service", f'{{service_name="{_SERVICE}"}} | severity_number >= 17')

REQUEST_RATE = Signal(
    title="Requests",
    means="Requests answered per second, by service.",
    good="The usual curve of the hour and the day.",
    action="A sudden fall says as much as a peak: look at errors and duration, then at who calls (service graph).",
    queries=(Query(expr=_requests, legend=_LEGEND),),
    unit="reqps",
    links=(links.traces("Traces of this service", f'{{ resource.service.name = "{_SERVICE}" && kind = server }}'),),
    empty="no requests",
)

REQUEST_ERRORS = Signal(
    title="Request errors",
    means="Share of requests answered with a 5xx status, by service. Client errors (4xx) do not count.",
    good="0 %; under 1 % over five minutes.",
    action="Follow the series' link to the failed traces: the deepest red span is where it began.",
    queries=(
        Query(
            expr=zero_when_empty(f"{_failed} / ({_requests} > 0) or 0 * {_requests}", service_name="no requests"),
            legend=_LEGEND,
        ),
    ),
    unit="percentunit",
    thresholds=Thresholds(warning=0.01, critical=0.05),
    links=(_FAILED_TRACES, _ERROR_LOGS),
)

REQUEST_DURATION = Signal(
    title="Request duration, p95",
    means="95 of 100 requests were answered within this time, by service. Dots are real requests, with a trace.",
    good="Under 1 s, and flat while the load varies.",
    action="Click a high dot and open its trace; the longest span without children is the place to look.",
    queries=(
        Query(
            expr=f"histogram_quantile(0.95, sum by (le, {BY_SERVICE}) "
            f"(rate({_BUCKET}{{{SERVICES}}}[$__rate_interval])))",
            legend=_LEGEND,
            exemplars=True,
        ),
    ),
    unit="s",
    thresholds=Thresholds(warning=1, critical=3),
    links=(_SLOW_TRACES,),
    empty="no requests",
)

REQUESTS_IN_FLIGHT = Signal(
    title="Requests in flight",
    means="Requests begun and not yet answered, by service.",
    good="A small number that follows the request rate.",
    action="A climb at a constant rate: something downstream has stopped answering. Look at the slowest traces.",
    queries=(
        Query(
            expr=f"sum by ({BY_SERVICE}) ({metric('http.server.active_requests')}{{{SERVICES}}})",
            legend=_LEGEND,
        ),
    ),
    thresholds=Thresholds(warning=50, critical=200),
    links=(_SLOW_TRACES,),
    empty="no requests",
)

LOG_ERRORS = Signal(
    title="Errors logged",
    means="Log records of severity ERROR and above per minute, by service.",
    good="0. More than ten an hour from one service deserve a look.",
    action="Follow the series' link to the lines; each carries the trace in which it was written.",
    queries=(
        Query(
            expr=zero_when_empty(
                f"60 * sum by ({BY_SERVICE}) (rate({_RECORDS}{{{SERVICES}, {_SEVERE}}}[$__rate_interval]))"
                f" or 0 * sum by ({BY_SERVICE}) ({_UP}{{{SERVICES}}})",
                service_name="no process",
            ),
            legend=_LEGEND,
        ),
    ),
    unit="cpm",
    thresholds=Thresholds(warning=0.2, critical=5),
    links=(_ERROR_LOGS,),
)

_PROCESS: Final = f"{BY_SERVICE}, service_version, instance"
_selected: Final = f"{_UP}{{{SERVICES}}}"
# A sample's own time, as long as Prometheus answers with it (5 min); for what is silent for longer a look back.
_heard = f"max by ({_PROCESS}) (timestamp({_selected}) or max_over_time(timestamp({_selected})[1h:10s]))"
_age = f"time() - {_heard}"
_last = f"max by ({_PROCESS}) (last_over_time({_selected}[1h]))"

PROCESSES = Signal(
    title="Processes",
    means="Every process heard of in the last hour, and how long ago its telemetry last arrived.",
    good="Up, and younger than 30 s. Processes that have ended cleanly say so before they go.",
    action=f"Silent: {SILENT_AFTER} s without a word and without a goodbye, so killed, hung or cut off. "
    "If all are silent look at the collector first.",
    queries=(
        Query(
            # 0 departed, 1 up, 2 silent
            expr=f"{_last} * (1 + ({_age} > bool {SILENT_AFTER}))",
            legend="State",
            states=((0, "ended", "text"), (1, "up", "green"), (2, "silent", "red")),
        ),
        Query(expr=_age, legend="Last heard", unit="s", thresholds=Thresholds(warning=30, critical=SILENT_AFTER)),
    ),
    labels=(
        ("deployment_environment_name", "Environment"),
        ("service_name", "Service"),
        ("service_version", "Version"),
        ("instance", "Instance"),
    ),
    sort="State",
    link_column="Service",
    links=(links.logs("Logs of this service", '{service_name="${__data.fields.Service}"}'),),
    empty="no process has reported in the last hour",
)

ERROR_LINES = Signal(
    title="Latest errors in the logs",
    means="Log lines of severity ERROR and above. Open a line to follow its trace id to the trace.",
    good="None.",
    action="Read the exception at the top of the newest line; the same message many times over is one cause, not many.",
    queries=(
        Query(
            expr='{deployment_environment_name=~"$environment", service_name=~"$service"} | severity_number >= 17',
            legend="",
        ),
    ),
    empty="no errors logged",
    datasource=LOKI,
)

FAILED_TRACES = Signal(
    title="Latest failed traces",
    means="Traces in which a span of the chosen services ended with an error.",
    good="None.",
    action="Open one: the deepest red span is where it began.",
    queries=(Query(expr='{ resource.service.name =~ "$service" && status = error }', legend=""),),
    empty="no failed traces",
    datasource=TEMPO,
)
