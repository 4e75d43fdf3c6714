"""The files below grafana/ are what the code makes, ask only for what exists, and help their reader."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_kit.catalogue import INSTRUMENTS, UPSTREAM_INSTRUMENTS, Instrument, prometheus_label, prometheus_name
from otel_kit.dashboards import generate
from otel_kit.dashboards.metrics import SCRAPED, metric
from otel_kit.dashboards.signals import zero_when_empty

GRAFANA = Path(__file__).parents[2] / "grafana"
OVERVIEW = json.loads((GRAFANA / "dashboards" / "overview.json").read_text())
SOURCES = {
    source["uid"]: source
    for source in yaml.safe_load((GRAFANA / "provisioning/datasources/otel-kit.yaml").read_text())["datasources"]
}

#: Functions and words of PromQL that look like metric names.
PROMQL_WORDS = {
    "and", "bool", "by", "histogram_quantile", "increase", "label_replace", "last_over_time", "max", "max_over_time",
    "on", "or", "rate", "sum", "time", "timestamp", "vector",
}  # fmt: skip


def panels(board: dict[str, Any] = OVERVIEW) -> list[dict[str, Any]]:
    """Every panel, those in folded rows too, without the rows."""
    every = [panel for top in board["panels"] for panel in (top, *top.get("panels", ()))]
    return [panel for panel in every if panel["type"] != "row"]


def targets(kind: str) -> list[tuple[str, str]]:
    """The queries to a kind of data source: panel title, expression."""
    return [
        (panel["title"], target["expr"])
        for panel in panels()
        if panel["datasource"]["type"] == kind
        for target in panel["targets"]
    ]


def promql() -> list[tuple[str, str]]:
    variables = [(each["name"], each["definition"]) for each in OVERVIEW["templating"]["list"]]
    links = [
        (query["name"], query["query"].replace("$$", "$"))
        for query in SOURCES["otel-kit-tempo"]["jsonData"]["tracesToMetrics"]["queries"]
    ]
    return (
        targets("prometheus")
        + [(name, re.sub(r"^label_values\((.*), \w+\)$", r"\1", query)) for name, query in variables]
        + links
    )


def instruments() -> dict[str, Instrument]:
    """Series name to instrument, a histogram's three series included."""
    series: dict[str, Instrument] = {}
    for each in (*INSTRUMENTS, *UPSTREAM_INSTRUMENTS):
        name = prometheus_name(each)
        suffixes = ("_bucket", "_sum", "_count") if each.kind == "histogram" else ("",)
        series |= {name + suffix: each for suffix in suffixes}
    return series


def selectors(expression: str) -> list[tuple[str, list[str]]]:
    """What a PromQL expression selects: each metric name with the labels of its matchers."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|on) \([^)]*\)", "", bare)
    found = []
    for match in re.finditer(r"\b([a-zA-Z_:][\w:]*)\b(?:\{([^}]*)\})?(?!\s*\()(?![\w{])", re.sub(r"\$\w+", "", bare)):
        name, matchers = match.groups()
        if name in PROMQL_WORDS or bare[max(0, match.start() - 1)] == '"':
            continue
        found.append((name, re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers or "")))
    return found


def test_committed_files_are_what_the_code_makes() -> None:
    made = generate.files()
    committed = {
        str(path.relative_to(GRAFANA)): path.read_text()
        for part in ("dashboards", "provisioning")
        for path in (GRAFANA / part).rglob("*")
        if path.is_file()
    }
    stale = sorted(name for name in made.keys() | committed.keys() if made.get(name) != committed.get(name))
    assert stale == [], "run `make generate`"


def test_generation_writes_every_file_and_is_repeatable(tmp_path: Path) -> None:
    generate.write(tmp_path)
    first = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    generate.write(tmp_path)
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == first
    assert len(first) == len(generate.files())


@pytest.mark.parametrize(("where", "expression"), promql())
def test_every_metric_that_is_asked_for_is_emitted(where: str, expression: str) -> None:
    known = instruments()
    names = [name for name, _ in selectors(expression)]
    assert names, f"{where}: no metric in {expression}"
    assert [name for name in names if name not in known and name not in SCRAPED] == []


@pytest.mark.parametrize(("where", "expression"), promql())
def test_every_label_that_is_matched_is_on_that_metric(where: str, expression: str) -> None:
    known = instruments()
    everywhere = {
        "deployment_environment_name",
        "service_name",
        "service_namespace",
        "service_version",
        "job",
        "instance",
        "le",
    }
    for name, labels in selectors(expression):
        own = {prometheus_label(each) for each in known[name].attributes} if name in known else set()
        assert set(labels) <= own | everywhere, f"{where}: {name}"


@pytest.mark.parametrize(("where", "expression"), promql())
def test_every_label_that_is_grouped_by_exists(where: str, expression: str) -> None:
    own = {prometheus_label(a) for each in (*INSTRUMENTS, *UPSTREAM_INSTRUMENTS) for a in each.attributes}
    known = own | {
        "deployment_environment_name",
        "service_name",
        "service_version",
        "instance",
        "le",
        "exporter",
        "data_type",
        "",
    }
    for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= known, where


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["title"]
    assert re.fullmatch(r".+\n\n\*\*Good:\*\* .+\n\n\*\*Otherwise:\*\* .+", panel["description"])
    assert defaults["unit"]
    assert defaults["min"] == 0
    assert defaults["noValue"]
    assert defaults["thresholds"]["steps"][0] == {"color": "green", "value": None}
    if panel["type"] == "timeseries":
        assert panel["options"]["legend"]["showLegend"] is True
        assert defaults["links"] or "Collector" in panel["title"] or "Messages" in panel["title"]


def test_a_glance_is_enough() -> None:
    unfolded = [panel for panel in OVERVIEW["panels"] if panel["type"] != "row"]
    assert len(unfolded) <= 12
    assert max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in unfolded) <= 24


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        spot = panel["gridPos"]
        cells = {
            (x, y) for x in range(spot["x"], spot["x"] + spot["w"]) for y in range(spot["y"], spot["y"] + spot["h"])
        }
        assert not cells & taken, panel["title"]
        assert spot["x"] + spot["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))


def test_every_datasource_that_is_referred_to_is_provisioned() -> None:
    text = "".join(generate.files().values())
    referred = set(re.findall(r"otel-kit-(?:tempo|prometheus|loki)", text)) | {
        each["datasource"]["uid"] for each in panels()
    }
    assert referred == set(SOURCES) == {"otel-kit-tempo", "otel-kit-prometheus", "otel-kit-loki"}


def test_the_three_signals_lead_to_each_other() -> None:
    tempo, prometheus, loki = (SOURCES[f"otel-kit-{name}"]["jsonData"] for name in ("tempo", "prometheus", "loki"))
    assert tempo["tracesToLogsV2"]["datasourceUid"] == "otel-kit-loki"
    assert tempo["tracesToLogsV2"]["customQuery"] is True
    assert tempo["tracesToLogsV2"]["query"] == '{$${__tags}} | trace_id="$${__trace.traceId}"'
    assert tempo["tracesToMetrics"]["datasourceUid"] == tempo["serviceMap"]["datasourceUid"] == "otel-kit-prometheus"
    assert tempo["nodeGraph"] == {"enabled": True}
    assert [(each["name"], each["datasourceUid"]) for each in prometheus["exemplarTraceIdDestinations"]] == [
        ("trace_id", "otel-kit-tempo")
    ]
    (derived,) = loki["derivedFields"]
    assert (derived["matcherType"], derived["matcherRegex"], derived["datasourceUid"]) == (
        "label",
        "trace_id",
        "otel-kit-tempo",
    )
    assert derived["url"] == "$${__value.raw}"


def test_latencies_carry_exemplars() -> None:
    drawn = {panel["title"] for panel in panels() for target in panel["targets"] if target.get("exemplar")}
    assert drawn == {"Request duration, p95", "Job wait, p95", "Job duration, p95"}


def test_choices_default_to_all() -> None:
    chosen = {
        each["name"]: (each["includeAll"], each["multi"], each["current"]["value"])
        for each in OVERVIEW["templating"]["list"]
    }
    assert chosen == dict.fromkeys(("environment", "service", "job"), (True, True, ["$__all"]))


def test_loki_is_never_asked_for_every_stream() -> None:
    # Loki refuses a selector of which every matcher also takes the empty value; All must mean `.+` for the service.
    service = next(each for each in OVERVIEW["templating"]["list"] if each["name"] == "service")
    assert service["allValue"] == ".+"
    assert all('service_name=~"$service"' in expression for _, expression in targets("loki"))


def test_schema_is_the_one_that_files_may_have() -> None:
    assert OVERVIEW["schemaVersion"] == 42
    assert "apiVersion" not in OVERVIEW


def test_an_unknown_instrument_cannot_be_asked_for() -> None:
    with pytest.raises(KeyError, match=r"job\.guesses"):
        metric("job.guesses")


def test_a_calm_error_panel_shows_zero_under_a_name() -> None:
    assert zero_when_empty("errors", service_name="none") == (
        '(errors) or on () label_replace(vector(0), "service_name", "none", "", "")'
    )
    for title in ("Request errors", "Errors logged", "Job failures", "Job runs by outcome"):
        (expression,) = [expression for where, expression in targets("prometheus") if where == title]
        assert "label_replace(vector(0)" in expression
