"""`otel-kit demo --stack` against the real collector and the real backends."""

from __future__ import annotations

import re
import secrets
import signal
import time

from otel_kit.demo.questions import SIGNALS, WHOLE, Run
from otel_kit.stack.query import poll
from tests.integration.test_demo import StartDemo, start_demo
from tests.stack import otlp
from tests.stack.conftest import Stack

__all__ = ["start_demo"]

SERVICES = ("bot", "gateway", "worker", "scheduler", "store")


def matrix(output: str) -> dict[str, list[bool]]:
    """For each service which signals were found."""
    found = {}
    for service in SERVICES:
        (line,) = re.findall(rf"^ +{service} +([\d.]+ s ✓|missing ✗)(.*)$", output, re.MULTILINE)
        found[service] = [mark == "✓" for mark in re.findall("[✓✗]", "".join(line))]
    return found


def test_every_signal_of_every_service_is_found_in_its_backend(stack: Stack, start_demo: StartDemo) -> None:
    demo = start_demo(
        "--stack", "--duration", "5", "--timeout", "90", OTEL_KIT_STACK_DATA_DIR=str(stack.settings.data_dir)
    )

    assert demo.ends_with(170) == 0, demo.output
    assert matrix(demo.output) == dict.fromkeys(SERVICES, [True] * len(SIGNALS))
    assert demo.output.count("✗") == 0
    for what in ("same trace id in Tempo, Prometheus and Loki", "exemplar that leads", "gateway -> worker"):
        assert re.search(rf"{what}.*\d s ✓", demo.output), demo.output
    assert demo.processes() == {}


def test_backend_that_is_down_shows_in_its_column_and_nowhere_else(stack: Stack, start_demo: StartDemo) -> None:
    stack.native.stop("loki")
    demo = start_demo(
        "--stack", "--duration", "5", "--timeout", "30", OTEL_KIT_STACK_DATA_DIR=str(stack.settings.data_dir)
    )

    assert demo.ends_with(170) == 1, demo.output
    others = [signal != "LogQL" for signal in SIGNALS]
    assert matrix(demo.output) == dict.fromkeys(SERVICES, others)
    assert re.search(r"same trace id in Tempo, Prometheus and Loki +missing ✗", demo.output)
    assert re.search(r"one trace from the bot to the store +[\d.]+ s ✓", demo.output)
    assert demo.processes() == {}


def test_kept_demo_goes_on_until_ctrl_c_and_its_findings_decide_the_exit_code(
    stack: Stack, start_demo: StartDemo
) -> None:
    demo = start_demo("--stack", "--keep", "--timeout", "90", OTEL_KIT_STACK_DATA_DIR=str(stack.settings.data_dir))
    demo.wait_until(lambda: "Traffic goes on until Ctrl-C" in demo.output, timeout=120)
    assert len(demo.processes()) > 5
    demo.process.send_signal(signal.SIGINT)

    assert demo.ends_with(30) == 0, demo.output
    assert demo.processes() == {}


def test_a_whole_request_is_found_among_many_health_checks(stack: Stack) -> None:
    run = Run(f"checked-{secrets.token_hex(4)}", time.time() - 1)
    version: dict[str, otlp.Value] = {"service.version": run.version}
    request = otlp.span("POST")
    for service in ("bot", "gateway", "worker", "store"):
        part = otlp.span(f"of {service}", trace_id=request.trace_id)
        stack.sender.send(otlp.traces(service, [part], version))
    for _ in range(50):
        stack.sender.send(otlp.traces("store", [otlp.span("GET /health")], version))
    # A search with a limit answers with some that fit, and with the same ones each time.
    of_store = f'{{ resource.service.name = "store" && resource.service.version = "{run.version}" }}'
    assert poll(lambda: len(stack.query.tempo_search(of_store)) == 51, 40)

    assert poll(lambda: WHOLE["one trace from the bot to the store"](stack.query, run), 40)
    assert [service for service in SERVICES[:3] if not SIGNALS["trace id"](stack.query, run, service)] == []
