"""Signals of background jobs: runs and their outcomes, failures, waits, durations, what runs now."""

from __future__ import annotations

from typing import Final

from otel_kit.dashboards import links
from otel_kit.dashboards.metrics import metric
from otel_kit.dashboards.signals import BY_JOB, ENVIRONMENTS, JOBS, Query, Signal, Thresholds, zero_when_empty

_LEGEND: Final = "{{job_name}} {{deployment_environment_name}}"
_JOB: Final = "${__field.labels.job_name}"

_EXECUTIONS: Final = metric("job.executions")
_FAILED: Final = 'job_outcome=~"failure|lost|rejected|expired|missed"'

_RUNS_OF_JOB = links.traces("Runs of this job (traces)", f'{{ span.job.name = "{_JOB}" }}')
_FAILED_RUNS_OF_JOB = links.traces(
    "Failed runs of this job (traces)", f'{{ span.job.name = "{_JOB}" && status = error }}'
)
_LOGS_OF_JOB = links.logs("Logs of this job", f'{{service_name=~".+"}} | job_name="{_JOB}"')

_OUTCOME: Final = "deployment_environment_name, job_outcome"
_by_outcome = f"60 * sum by ({_OUTCOME}) (rate({_EXECUTIONS}{{{JOBS}}}[$__rate_interval]))"
_happened = f"sum by ({_OUTCOME}) (increase({_EXECUTIONS}{{{JOBS}}}[$__range])) > 0"

JOB_RUNS = Signal(
    title="Job runs by outcome",
    means="Runs ended per minute, by outcome. Only outcomes that occurred in the chosen time are drawn.",
    good="`success` at the usual pace, now and then a `retry`.",
    action="No runs although jobs are sent: no worker is consuming, see Processes. Failures: go on to the right.",
    queries=(
        Query(
            # Every outcome exists as a series at 0 from the start; without the filter most lines would never leave 0.
            expr=zero_when_empty(f"{_by_outcome} and {_happened}", job_outcome="no runs"),
            legend="{{job_outcome}} {{deployment_environment_name}}",
        ),
    ),
    unit="cpm",
    colors=(("^success", "green"), ("^retry", "orange"), ("^failure", "red"), ("^lost", "purple")),
    links=(links.traces("Runs with this outcome (traces)", '{ span.job.outcome = "${__field.labels.job_outcome}" }'),),
)

JOB_FAILURES = Signal(
    title="Job failures",
    means="Runs per minute that ended for good without success: failed, lost with their worker, expired, rejected.",
    good="0.",
    action="Follow the series' link to the failed runs: the span carries the exception, its log lines the way there.",
    queries=(
        Query(
            expr=zero_when_empty(
                f"60 * sum by ({BY_JOB}) (rate({_EXECUTIONS}{{{JOBS}, {_FAILED}}}[$__rate_interval]))",
                job_name="no jobs",
            ),
            legend=_LEGEND,
        ),
    ),
    unit="cpm",
    thresholds=Thresholds(warning=0.1, critical=5),
    links=(_FAILED_RUNS_OF_JOB, _LOGS_OF_JOB),
)

JOB_WAIT = Signal(
    title="Job wait, p95",
    means="95 of 100 runs waited at most this long once they could have started. Dots are real runs, with a trace.",
    good="Under a few seconds; an alert is due from 3 min on.",
    action="Waits that grow while durations stay flat: too few workers. Both grow: the jobs themselves became slow.",
    queries=(
        Query(
            expr=f"histogram_quantile(0.95, sum by (le, {BY_JOB}) "
            f"(rate({metric('job.wait.duration', 'bucket')}{{{JOBS}}}[$__rate_interval])))",
            legend=_LEGEND,
            exemplars=True,
        ),
    ),
    unit="s",
    thresholds=Thresholds(warning=180, critical=600),
    links=(_RUNS_OF_JOB,),
    empty="no runs",
)

JOB_DURATION = Signal(
    title="Job duration, p95",
    means="95 of 100 runs took at most this long. Dots are real runs, with a trace.",
    good="Flat, and far below the job's time limit.",
    action="Click a high dot and open its trace: the longest child span (SQL, HTTP, ...) is the place to look.",
    queries=(
        Query(
            expr=f"histogram_quantile(0.95, sum by (le, {BY_JOB}) "
            f"(rate({metric('job.duration', 'bucket')}{{{JOBS}}}[$__rate_interval])))",
            legend=_LEGEND,
            exemplars=True,
        ),
    ),
    unit="s",
    thresholds=Thresholds(warning=300, critical=900),
    links=(_RUNS_OF_JOB,),
    empty="no runs",
)

JOBS_RUNNING = Signal(
    title="Jobs running",
    means="Runs that have started and not yet ended, by job.",
    good="Between 0 and the number of worker slots.",
    action="At the number of slots while waits grow: the workers are saturated. Flat with no runs ending: a job hangs.",
    queries=(Query(expr=f"sum by ({BY_JOB}) ({metric('job.active')}{{{JOBS}}})", legend=_LEGEND),),
    links=(_RUNS_OF_JOB,),
    empty="no jobs",
)

JOB_MESSAGES = Signal(
    title="Messages sent and consumed",
    means="Jobs handed to the broker and deliveries to workers, per second and queue.",
    good="The two lines lie on each other.",
    action="Sent above consumed for long: the queue is growing. A publish that fails shows in the sender's traces.",
    queries=(
        Query(
            expr="sum by (deployment_environment_name, messaging_destination_name) "
            f"(rate({metric('messaging.client.sent.messages')}{{{ENVIRONMENTS}}}[$__rate_interval]))",
            legend="sent {{messaging_destination_name}} {{deployment_environment_name}}",
        ),
        Query(
            expr="sum by (deployment_environment_name, messaging_destination_name) "
            f"(rate({metric('messaging.client.consumed.messages')}{{{ENVIRONMENTS}}}[$__rate_interval]))",
            legend="consumed {{messaging_destination_name}} {{deployment_environment_name}}",
        ),
    ),
    unit="mps",
    empty="no messages",
)

JOB_ERROR_TYPES = Signal(
    title="Job errors by type",
    means="Errors that runs ended with in the chosen time, by exception type and category.",
    good="None.",
    action="The top type is the one to fix first; follow the job's link to its failed runs.",
    queries=(
        Query(
            expr="sum by (deployment_environment_name, job_name, error_type, job_error_category) "
            f"(increase({metric('job.errors')}{{{JOBS}}}[$__range])) > 0",
            legend="Errors",
        ),
    ),
    thresholds=Thresholds(warning=1, critical=10),
    labels=(
        ("deployment_environment_name", "Environment"),
        ("job_name", "Job"),
        ("error_type", "Error"),
        ("job_error_category", "Category"),
    ),
    sort="Errors",
    link_column="Job",
    links=(links.traces("Failed runs (traces)", '{ span.job.name = "${__data.fields.Job}" && status = error }'),),
    empty="no errors",
)


_ended = f'sum by ({BY_JOB}) (increase({_EXECUTIONS}{{{JOBS}, job_outcome!="retry"}}[$__range]))'
_failed = f"sum by ({BY_JOB}) (increase({_EXECUTIONS}{{{JOBS}, {_FAILED}}}[$__range]))"


def _moment(name: str) -> str:
    """When something last happened. Grafana takes milliseconds; 0 stands for never and is left out."""
    return f"1000 * (max by ({BY_JOB}) (last_over_time({metric(name)}{{{JOBS}}}[$__range])) > 0)"


JOB_TABLE = Signal(
    title="Jobs",
    means="Every job that ran in the chosen time: how often, how often it failed, how long it takes, when it last ran.",
    good="Failed 0 %, and a last success younger than the job's schedule.",
    action="Click a job for its traces. A last failure after the last success means it is broken now.",
    queries=(
        Query(expr=_ended, legend="Runs", unit="none"),
        Query(
            expr=f"{_failed} / ({_ended} > 0) or 0 * {_ended}",
            legend="Failed",
            unit="percentunit",
            thresholds=Thresholds(warning=0.1, critical=0.2),
        ),
        Query(
            expr=f"histogram_quantile(0.95, sum by (le, {BY_JOB}) "
            f"(increase({metric('job.duration', 'bucket')}{{{JOBS}}}[$__range]))) >= 0",
            legend="p95",
            unit="s",
            thresholds=Thresholds(warning=300, critical=900),
        ),
        Query(expr=_moment("job.last_success.time"), legend="Last success", unit="dateTimeFromNow"),
        Query(expr=_moment("job.last_failure.time"), legend="Last failure", unit="dateTimeFromNow"),
    ),
    labels=(("deployment_environment_name", "Environment"), ("job_name", "Job")),
    sort="Failed",
    link_column="Job",
    links=(
        links.traces("Runs of this job (traces)", '{ span.job.name = "${__data.fields.Job}" }'),
        links.logs("Logs of this job", '{service_name=~".+"} | job_name="${__data.fields.Job}"'),
    ),
    empty="no runs in the chosen time",
)
