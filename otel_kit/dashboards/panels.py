"""How a signal is drawn: as a time series, numbers, a table, log lines or traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from otel_kit.dashboards import sdk
from otel_kit.dashboards.sdk import common_model, dashboard_model

if TYPE_CHECKING:
    from otel_kit.dashboards.datasources import Datasource
    from otel_kit.dashboards.links import Link
    from otel_kit.dashboards.signals import Query, Signal, Thresholds

PanelT = TypeVar("PanelT", sdk.timeseries.Panel, sdk.stat.Panel, sdk.table.Panel, sdk.logs.Panel)
Property = dashboard_model.DynamicConfigValue


def reference(datasource: Datasource) -> common_model.DataSourceRef:
    """A data source as dashboards refer to it."""
    return common_model.DataSourceRef(type_val=datasource.type, uid=datasource.uid)


def _steps(limits: Thresholds) -> list[dashboard_model.Threshold]:
    steps = [dashboard_model.Threshold(value=None, color="green")]
    if limits.warning is not None:
        steps.append(dashboard_model.Threshold(value=limits.warning, color="orange"))
    if limits.critical is not None:
        steps.append(dashboard_model.Threshold(value=limits.critical, color="red"))
    return steps


def _ref(position: int) -> str:
    return chr(ord("A") + position)


def _framed(panel: PanelT, signal: Signal, width: int, height: int) -> PanelT:
    """What every panel has: title, help, unit, a scale from 0, thresholds, and words for emptiness."""
    thresholds = sdk.dashboard.ThresholdsConfig().mode(dashboard_model.ThresholdsMode.ABSOLUTE)
    return (
        panel.title(signal.title)
        .description(signal.description)
        .datasource(reference(signal.datasource))
        .unit(signal.unit)
        .min(0)
        .thresholds(thresholds.steps(_steps(signal.thresholds)))
        .no_value(signal.empty)
        .span(width)
        .height(height)
    )


def _link(link: Link) -> sdk.dashboard.DashboardLink:
    return sdk.dashboard.DashboardLink(link.title).url(link.url)


def timeseries(signal: Signal, *, width: int, height: int = 7) -> sdk.timeseries.Panel:
    """Lines over time: thresholds as dashed lines, exemplars as dots, links on every series."""
    limits = common_model.GraphThresholdsStyleMode
    panel = (
        _framed(sdk.timeseries.Panel(), signal, width, height)
        .data_links([_link(each) for each in signal.links])
        .line_width(1)
        .fill_opacity(8)
        # A job that runs once an hour is one point without neighbours, which a line alone would not show.
        .show_points(common_model.VisibilityMode.AUTO)
        .legend(
            sdk.common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_model.LegendDisplayMode.LIST)
            .placement(common_model.LegendPlacement.BOTTOM)
        )
        .tooltip(
            sdk.common.VizTooltipOptions()
            .mode(common_model.TooltipDisplayMode.MULTI)
            .sort(common_model.SortOrder.DESCENDING)
        )
        .thresholds_style(
            sdk.common.GraphThresholdsStyleConfig().mode(
                limits.OFF if signal.thresholds.warning is None else limits.DASHED
            )
        )
    )
    for position, query in enumerate(signal.queries):
        target = sdk.prometheus.Dataquery().ref_id(_ref(position)).expr(query.expr).legend_format(query.legend).range()
        panel.with_target(target.exemplar(True) if query.exemplars else target)
    for pattern, color in signal.colors:
        panel.override_by_regexp(pattern, [Property(id_val="color", value={"mode": "fixed", "fixedColor": color})])
    return panel


def stat(signal: Signal, *, width: int, height: int = 7) -> sdk.stat.Panel:
    """One number for each query, in the color of its threshold."""
    panel = (
        _framed(sdk.stat.Panel(), signal, width, height)
        .data_links([_link(each) for each in signal.links])
        .color_mode(common_model.BigValueColorMode.VALUE)
        .graph_mode(common_model.BigValueGraphMode.NONE)
        .text_mode(common_model.BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(sdk.common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    for position, query in enumerate(signal.queries):
        target = sdk.prometheus.Dataquery().ref_id(_ref(position)).expr(query.expr).legend_format(query.legend)
        panel.with_target(target.instant())
    return panel


def _column(query: Query) -> list[Property]:
    properties = []
    if query.unit is not None:
        properties.append(Property(id_val="unit", value=query.unit))
    if query.thresholds is not None:
        steps = {"mode": dashboard_model.ThresholdsMode.ABSOLUTE, "steps": _steps(query.thresholds)}
        properties.append(Property(id_val="thresholds", value=steps))
    if query.states:
        states = {
            f"{value:g}": dashboard_model.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, text, color) in enumerate(query.states)
        }
        properties.append(Property(id_val="mappings", value=[dashboard_model.ValueMap(options=states)]))
    if query.thresholds is not None or query.states:
        properties.append(Property(id_val="custom.cellOptions", value=common_model.TableColorTextCellOptions()))
    return properties


def _value_field(signal: Signal, position: int) -> str:
    """How Grafana calls the value of a query in table format: numbered as soon as there are several."""
    return "Value" if len(signal.queries) == 1 else f"Value #{_ref(position)}"


def table(signal: Signal, *, width: int, height: int = 7) -> sdk.table.Panel:
    """The present state: a row for each set of labels, a column for each label and query."""
    panel = _framed(sdk.table.Panel(), signal, width, height).show_header(True)
    panel.cell_height(common_model.TableCellHeight.SM)
    for position, query in enumerate(signal.queries):
        target = sdk.prometheus.Dataquery().ref_id(_ref(position)).expr(query.expr).legend_format(query.legend)
        panel.with_target(target.instant().format(sdk.prometheus_model.PromQueryFormat.TABLE))
        if properties := _column(query):
            panel.override_by_name(query.legend, properties)
    names = dict(signal.labels) | {_value_field(signal, i): query.legend for i, query in enumerate(signal.queries)}
    columns = {
        "excludeByName": {"Time": True},
        "indexByName": {name: index for index, name in enumerate(names)},
        "renameByName": names,
    }
    panel.with_transformation(dashboard_model.DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(dashboard_model.DataTransformerConfig(id_val="organize", options=columns))
    panel.sort_by([sdk.common.TableSortByFieldState().display_name(signal.sort).desc(True)])
    linked = [{"title": each.title, "url": each.url} for each in signal.links]
    panel.override_by_name(signal.link_column, [Property(id_val="links", value=linked)])
    return panel


def traces(signal: Signal, *, width: int, height: int = 9, limit: int = 20) -> sdk.table.Panel:
    """The newest traces that a TraceQL query finds; the trace id leads to the trace."""
    panel = _framed(sdk.table.Panel(), signal, width, height)
    for position, query in enumerate(signal.queries):
        target = sdk.tempo.Dataquery().ref_id(_ref(position)).query_type("traceql").query(query.expr).limit(limit)
        panel.with_target(target.table_type(sdk.tempo_model.SearchTableType.TRACES))
    return panel


def logs(signal: Signal, *, width: int, height: int = 9) -> sdk.logs.Panel:
    """Log lines, newest first, their fields one click away."""
    panel = (
        _framed(sdk.logs.Panel(), signal, width, height)
        .show_time(True)
        .show_labels(False)
        .wrap_log_message(True)
        .enable_log_details(True)
        .sort_order(common_model.LogsSortOrder.DESCENDING)
    )
    for position, query in enumerate(signal.queries):
        panel.with_target(
            sdk.loki.Dataquery().ref_id(_ref(position)).expr(query.expr).query_type("range").max_lines(200)
        )
    return panel
