"""Every query of the dashboards and every link between the data sources, asked of the real backends after real traffic."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from otel_kit.demo.pipeline import running_pipeline
from otel_kit.stack.query import StackQuery, poll
from tests.stack.conftest import Stack

GRAFANA = Path(__file__).parents[2] / "grafana"
OVERVIEW = json.loads((GRAFANA / "dashboards" / "overview.json").read_text())
PANELS = {
    panel["title"]: panel
    for top in OVERVIEW["panels"]
    for panel in (top, *top.get("panels", ()))
    if panel["type"] != "row"
}
EVERYTHING = {each["name"]: each["allValue"] for each in OVERVIEW["templating"]["list"]}
TARGETS = [
    pytest.param(title, target["refId"], id=f"{title} {target['refId']}")
    for title, panel in PANELS.items()
    for target in panel["targets"]
]
#: The services and the job whose telemetry is looked for, as the labels of a series or the fields of a row carry them.
SERVICE = "worker"
JOB = "transcribe"


@dataclass(frozen=True)
class Traffic:
    """What is in the backends: where to ask, and how many messages of each kind were sent."""

    query: StackQuery
    sent: dict[str, int]


def filled(text: str, chosen: dict[str, str] = EVERYTHING) -> str:
    """A query with Grafana's variables replaced, in the ways that the dashboard writes them."""
    values = {**chosen, "__rate_interval": "5m", "__range": "30m"}
    for name, value in values.items():
        text = re.sub(rf"\$\{{{name}(:\w+)?\}}|\${name}\b", lambda _, value=value: value, text)
    assert "$" not in text, text
    return text


def rows(traffic: Traffic, title: str, ref: str, chosen: dict[str, str] = EVERYTHING) -> list[dict[str, Any]]:
    """What one query of a panel answers."""
    panel = PANELS[title]
    (target,) = [each for each in panel["targets"] if each["refId"] == ref]
    match panel["datasource"]["type"]:
        case "prometheus":
            return traffic.query.prom_query(filled(target["expr"], chosen))
        case "loki":
            return traffic.query.loki_query(filled(target["expr"], chosen))
        case "tempo":
            return traffic.query.tempo_search(filled(target["query"], chosen))
        case other:
            raise AssertionError(other)


def number(row: dict[str, Any]) -> float:
    return float(row["value"][1])


@pytest.fixture(scope="module")
def traffic(session_stack: Stack) -> Traffic:
    """The example with forty messages, nine of them failures, stopped again; its metrics and spans can be found."""
    query = session_stack.query
    telemetry = {
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=demo,service.version=1.0",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_BLRP_SCHEDULE_DELAY": "200",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
    }
    with running_pipeline(session_stack.endpoints.otlp_http, lambda *_: None, telemetry=telemetry) as pipeline:
        load = pipeline.load("--count", "40", "--rate", "8", "--seed", "269")
        sent = pipeline.finish_load(load, timeout=90)
        failed = f'sum(job_executions_total{{job_name="{JOB}",job_outcome="failure"}})'
        assert poll(lambda: query.prom_value(failed) == sent["failure"], timeout=60)
        for name in ("http_server_request_duration_seconds_count", "messaging_client_sent_messages_total"):
            # Two samples are there, so there is a rate.
            assert poll(lambda name=name: query.prom_query(f"rate({name}[5m]) > 0"), timeout=60)
    assert poll(lambda: query.tempo_search("{ status = error }"), timeout=60)
    assert poll(lambda: query.prom_query('up{job="otelcol"} == 1'), timeout=60)
    return Traffic(query, sent)


@pytest.mark.parametrize(("title", "ref"), TARGETS)
def test_a_query_has_an_answer(traffic: Traffic, title: str, ref: str) -> None:
    answer = poll(lambda: rows(traffic, title, ref), timeout=45)
    assert answer
    if PANELS[title]["datasource"]["type"] == "prometheus":
        assert any(math.isfinite(number(row)) for row in answer), answer


def test_failures_are_drawn_by_job(traffic: Traffic) -> None:
    by_job = {row["metric"]["job_name"]: number(row) for row in rows(traffic, "Job failures", "A")}
    assert by_job[JOB] > 0
    assert by_job["nightly_report"] == 0


def test_outcomes_that_did_not_occur_are_not_drawn(traffic: Traffic) -> None:
    drawn = {row["metric"]["job_outcome"] for row in rows(traffic, "Job runs by outcome", "A")}
    assert {"success", "failure", "retry"} <= drawn
    assert "lost" not in drawn


def test_the_table_of_jobs_counts_every_run(traffic: Traffic) -> None:
    counted = {row["metric"]["job_name"]: number(row) for row in rows(traffic, "Jobs", "A")}
    messages = sum(traffic.sent[kind] for kind in ("success", "slow", "retry", "failure"))
    # `increase` extrapolates between samples: close, not equal.
    assert counted[JOB] == pytest.approx(messages, rel=0.25)
    shares = {row["metric"]["job_name"]: number(row) for row in rows(traffic, "Jobs", "B")}
    assert shares[JOB] == pytest.approx(traffic.sent["failure"] / messages, rel=0.25)
    assert shares["remind"] == 0


@pytest.mark.parametrize("title", ["Request errors", "Errors logged", "Job failures", "Job runs by outcome"])
def test_an_error_panel_of_nothing_shows_zero_under_a_name(traffic: Traffic, title: str) -> None:
    (row,) = rows(traffic, title, "A", {"environment": "none", "service": "none", "job": "none"})
    assert number(row) == 0
    assert list(row["metric"].values()) in (["no requests"], ["no process"], ["no jobs"], ["no runs"])


def test_a_service_without_errors_shows_zero_under_its_own_name(traffic: Traffic) -> None:
    shares = {row["metric"]["service_name"]: number(row) for row in rows(traffic, "Request errors", "A")}
    assert shares["gateway"] == 0
    logged = {row["metric"]["service_name"]: number(row) for row in rows(traffic, "Errors logged", "A")}
    assert logged["bot"] == 0
    assert logged[SERVICE] > 0


def test_processes_that_said_goodbye_are_ended_and_not_silent(traffic: Traffic) -> None:
    states = {row["metric"]["service_name"]: number(row) for row in rows(traffic, "Processes", "A")}
    assert states["gateway"] == 0
    assert set(states) >= {"bot", "gateway", "store", "worker", "scheduler"}
    ages = [number(row) for row in rows(traffic, "Processes", "B")]
    assert all(0 <= age < 300 for age in ages)


def test_nothing_was_dropped_and_the_panel_says_zero(traffic: Traffic) -> None:
    for ref in ("A", "B", "C"):
        (row,) = rows(traffic, "Telemetry dropped", ref)
        assert number(row) == 0


@pytest.mark.parametrize("title", [title for title, panel in PANELS.items() if panel["targets"][0].get("exemplar")])
def test_exemplars_of_a_latency_lead_to_traces(traffic: Traffic, title: str) -> None:
    series = traffic.query.prom_exemplars(filled(PANELS[title]["targets"][0]["expr"]))
    found = [point["labels"]["trace_id"] for each in series for point in each["exemplars"]]
    assert found
    assert poll(lambda: traffic.query.tempo_trace(found[-1]), timeout=30)


@pytest.mark.parametrize("variable", OVERVIEW["templating"]["list"], ids=lambda each: each["name"])
def test_a_variable_offers_what_there_is(traffic: Traffic, variable: dict[str, Any]) -> None:
    selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
    found = {row["metric"][label] for row in traffic.query.prom_query(f"count by ({label}) ({filled(selector)})")}
    assert found >= {"environment": {"demo"}, "service": {"gateway", SERVICE}, "job": {JOB, "remind"}}[variable["name"]]


def links() -> list[Any]:
    """Every link of the dashboard and its panels that leads to a search."""
    found = [("dashboard", link) for link in OVERVIEW["links"]]
    for title, panel in PANELS.items():
        found += [(title, link) for link in panel["fieldConfig"]["defaults"].get("links", ())]
        for override in panel["fieldConfig"]["overrides"]:
            for prop in override["properties"]:
                found += [(title, link) for link in prop["value"] if prop["id"] == "links"]
    return [
        pytest.param(link["url"], id=f"{title}: {link['title']}")
        for title, link in found
        if link["title"] != "Service graph"
    ]


@pytest.mark.parametrize("url", links())
def test_a_link_opens_a_search_that_finds_something(traffic: Traffic, url: str) -> None:
    # The slowest request here takes about a second; asking for less is still the same search.
    panes = json.loads(parse_qs(urlsplit(url).query)["panes"][0].replace("duration > 1s", "duration > 1ms"))["a"]
    (query,) = panes["queries"]
    assert panes["datasource"] == query["datasource"]["uid"]
    assert panes["range"] == {"from": "${__from}", "to": "${__to}"}
    text = query.get("query") or query["expr"]
    service = "gateway" if "kind = server" in text else SERVICE
    labels = {"service_name": service, "job_name": JOB, "job_outcome": "failure"}
    for name, value in labels.items():
        text = text.replace(f"${{__field.labels.{name}}}", value)
    text = filled(text.replace("${__data.fields.Job}", JOB).replace("${__data.fields.Service}", SERVICE))
    if query["datasource"]["type"] == "tempo":
        assert poll(lambda: traffic.query.tempo_search(text), timeout=45), text
    else:
        assert poll(lambda: traffic.query.loki_query(text), timeout=45), text


def provisioned(uid: str) -> dict[str, Any]:
    """A data source as Grafana has it after reading the file: `$$` is a plain `$`."""
    content = yaml.safe_load((GRAFANA / "provisioning/datasources/otel-kit.yaml").read_text().replace("$$", "$"))
    return next(each["jsonData"] for each in content["datasources"] if each["uid"] == uid)


def test_a_span_leads_to_its_log_lines(traffic: Traffic) -> None:
    links_of_tempo = provisioned("otel-kit-tempo")["tracesToLogsV2"]
    (tag,) = links_of_tempo["tags"]
    for found in traffic.query.tempo_search(f'{{ span.job.name = "{JOB}" }}'):
        text = links_of_tempo["query"].replace("${__tags}", f'{tag["value"]}="{SERVICE}"')
        text = text.replace("${__trace.traceId}", found["traceID"].rjust(32, "0"))
        if poll(lambda text=text: traffic.query.loki_query(text), timeout=10):
            return
    pytest.fail("no trace of a job has log lines")


def test_a_span_leads_to_its_metrics(traffic: Traffic) -> None:
    links_of_tempo = provisioned("otel-kit-tempo")["tracesToMetrics"]
    for query in links_of_tempo["queries"]:
        tags = 'service_name="gateway"' if "http" in query["query"] else f'service_name="{SERVICE}", job_name="{JOB}"'
        assert traffic.query.prom_query(query["query"].replace("$__tags", tags)), query["name"]


def test_a_log_line_leads_to_its_trace(traffic: Traffic) -> None:
    (derived,) = provisioned("otel-kit-loki")["derivedFields"]
    lines = traffic.query.loki_query(f'{{service_name="{SERVICE}"}} | job_name="{JOB}"')
    ids = [line["labels"][derived["matcherRegex"]] for line in lines if derived["matcherRegex"] in line["labels"]]
    assert ids
    assert poll(lambda: traffic.query.tempo_trace(ids[0]), timeout=30)


def test_the_service_graph_has_the_names_that_grafana_asks_for(traffic: Traffic) -> None:
    # Hard-coded in Grafana's Tempo data source (grafana#82931).
    for name in (
        "traces_spanmetrics_calls_total",
        "traces_spanmetrics_latency_bucket",
        "traces_service_graph_request_total",
    ):
        assert poll(lambda name=name: traffic.query.prom_query(f"count({name})"), timeout=30), name
