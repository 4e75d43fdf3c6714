"""What the collector has accepted survives its SIGKILL."""

from __future__ import annotations

from otel_kit.stack.query import poll
from tests.stack.conftest import Stack
from tests.stack.counting import FOUND, missing
from tests.stack.otlp import Traffic


def test_everything_accepted_before_each_kill_is_found(stack: Stack) -> None:
    with Traffic(stack.endpoints.otlp_http, "crash", pause=0.005) as traffic:
        for _ in range(4):
            before = len(traffic.accepted["lines"])
            assert poll(lambda before=before: len(traffic.accepted["lines"]) > before + 150, 30, interval=0.01)
            stack.native.kill("otelcol-kit")
            stack.native.start("otelcol-kit")
        before = len(traffic.accepted["lines"])
        assert poll(lambda: len(traffic.accepted["lines"]) > before + 20, 30)

    for signal in FOUND:
        assert len(traffic.accepted[signal]) > 600
        assert missing(stack.query, traffic, signal, 60) == set()


def test_what_waits_for_a_backend_survives_a_kill(stack: Stack) -> None:
    for backend in ("tempo", "prometheus", "loki"):
        stack.native.stop(backend)
    with Traffic(stack.endpoints.otlp_http, "crash-queued", pause=0.01) as traffic:
        assert poll(lambda: len(traffic.accepted["lines"]) > 200, 30)
        stack.native.kill("otelcol-kit")
    stack.native.start("otelcol-kit")
    for backend in ("tempo", "prometheus", "loki"):
        stack.native.start(backend)

    for signal in FOUND:
        assert len(traffic.accepted[signal]) > 200
        assert missing(stack.query, traffic, signal, 90) == set()
