"""Is everything well? Services, jobs and the telemetry pipeline on one screen; details are folded below."""

from __future__ import annotations

from typing import Final

from otel_kit.dashboards import jobs, links, panels, pipeline, services
from otel_kit.dashboards.datasources import PROMETHEUS
from otel_kit.dashboards.metrics import metric
from otel_kit.dashboards.sdk import dashboard, dashboard_model

UID: Final = "otel-kit-overview"
_UP: Final = metric("otel_kit.process.up")
_ENVIRONMENT: Final = 'deployment_environment_name=~"$environment"'


def _variable(name: str, label: str, query: str, everything: str) -> dashboard.QueryVariable:
    """A choice of several, All at first.

    Parameters:
        everything: The regular expression that All stands for. Loki refuses a query whose every matcher takes the empty
            value, so it is `.+` wherever a label is always there.
    """
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(panels.reference(PROMETHEUS))
        .query({"query": query, "refId": f"variable-{name}"})
        .definition(query)
        .refresh(dashboard_model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard_model.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
        .multi(True)
        .include_all(True)
        .all_value(everything)
        .current(dashboard_model.VariableOption(text=["All"], value=["$__all"], selected=True))
    )


def _link(link: links.Link, icon: str) -> dashboard.DashboardLink:
    kind = dashboard_model.DashboardLinkType.LINK
    return dashboard.DashboardLink(link.title).type(kind).url(link.url).icon(icon)


def build() -> dashboard_model.Dashboard:
    """The board as the SDK's model, ready to be encoded."""
    by_job = metric("job.executions")
    board = (
        dashboard.Dashboard("otel-kit: overview")
        .uid(UID)
        .description("Services, background jobs and the telemetry pipeline on one screen.")
        .tags(["otel-kit"])
        .timezone("browser")
        .readonly()
        .time("now-30m", "now")
        .refresh("10s")
        .tooltip(dashboard_model.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            _variable("environment", "Environment", f"label_values({_UP}, deployment_environment_name)", ".*")
        )
        .with_variable(_variable("service", "Service", f"label_values({_UP}{{{_ENVIRONMENT}}}, service_name)", ".+"))
        .with_variable(
            _variable(
                "job", "Job", f'label_values({by_job}{{{_ENVIRONMENT}, service_name=~"$service"}}, job_name)', ".+"
            )
        )
        .link(_link(links.traces("Traces", '{ resource.service.name =~ "${service:pipe}" }'), "search"))
        .link(_link(links.logs("Logs", '{service_name=~"${service:pipe}"}'), "file-alt"))
        .link(_link(links.service_graph("Service graph"), "sitemap"))
    )
    board.with_row(dashboard.Row("Services"))
    board.with_panel(panels.timeseries(services.REQUEST_RATE, width=6))
    board.with_panel(panels.timeseries(services.REQUEST_ERRORS, width=6))
    board.with_panel(panels.timeseries(services.REQUEST_DURATION, width=6))
    board.with_panel(panels.timeseries(services.LOG_ERRORS, width=6))
    board.with_row(dashboard.Row("Jobs"))
    board.with_panel(panels.timeseries(jobs.JOB_RUNS, width=6))
    board.with_panel(panels.timeseries(jobs.JOB_FAILURES, width=6))
    board.with_panel(panels.timeseries(jobs.JOB_WAIT, width=6))
    board.with_panel(panels.timeseries(jobs.JOB_DURATION, width=6))
    board.with_row(dashboard.Row("Where to look next, and whether the picture is complete"))
    board.with_panel(panels.table(jobs.JOB_TABLE, width=8))
    board.with_panel(panels.table(services.PROCESSES, width=8))
    board.with_panel(panels.timeseries(pipeline.COLLECTOR_QUEUES, width=4))
    board.with_panel(panels.stat(pipeline.TELEMETRY_DROPPED, width=4))
    board.with_row(
        dashboard.Row("Errors: latest traces, log lines and types")
        .with_panel(panels.traces(services.FAILED_TRACES, width=12))
        .with_panel(panels.logs(services.ERROR_LINES, width=12))
        .with_panel(panels.table(jobs.JOB_ERROR_TYPES, width=24))
    )
    board.with_row(
        dashboard.Row("Load: in flight, running, sent and consumed")
        .with_panel(panels.timeseries(services.REQUESTS_IN_FLIGHT, width=8))
        .with_panel(panels.timeseries(jobs.JOBS_RUNNING, width=8))
        .with_panel(panels.timeseries(jobs.JOB_MESSAGES, width=8))
    )
    return board.build()
