"""What the collector has accepted survives its SIGKILL."""

from __future__ import annotations

from otel_kit.stack.query import poll
from tests.stack.conftest import Stack
from tests.stack.counting import FOUND, missing
from tests.stack.otlp import Traffic


def lost(stack: Stack, traffic: Traffic, timeout: float) -> dict[str, set[int]]:
    """What was accepted and is not found, by signal."""
    return {signal: gone for signal in FOUND if (gone := missing(stack.query, traffic, signal, timeout))}


def test_everything_accepted_before_each_kill_is_found(stack: Stack) -> None:
    with Traffic(stack.endpoints.otlp_http, "crash", pause=0.005) as traffic:
        for _ in range(4):
            before = len(traffic.accepted["lines"])
            assert poll(lambda before=before: len(traffic.accepted["lines"]) > before + 150, 30, interval=0.01)
            stack.native.kill("otelcol-kit")
            stack.native.start("otelcol-kit")
        before = len(traffic.accepted["lines"])
        assert poll(lambda: len(traffic.accepted["lines"]) > before + 20, 30)

    assert min(map(len, traffic.accepted.values())) > 600
    assert lost(stack, traffic, 60) == {}


def test_what_waits_for_a_backend_survives_a_kill(stack: Stack) -> None:
    for backend in ("tempo", "prometheus", "loki"):
        stack.native.stop(backend)
    with Traffic(stack.endpoints.otlp_http, "crash-queued", pause=0.01) as traffic:
        assert poll(lambda: len(traffic.accepted["lines"]) > 200, 30)
        stack.native.kill("otelcol-kit")
    stack.native.start("otelcol-kit")
    for backend in ("tempo", "prometheus", "loki"):
        stack.native.start(backend)

    assert min(map(len, traffic.accepted.values())) > 200
    assert lost(stack, traffic, 90) == {}


def test_it_listens_only_when_every_queue_is_open(stack: Stack) -> None:
    # What it took before would meet a queue that is still reading what the kill has left, and be overwritten or overwrite.
    log = stack.native.log("otelcol-kit")
    for _ in range(8):  # without the correction in otel_kit/stack/pins.py the order is another one each time
        stack.native.kill("otelcol-kit")
        before = log.stat().st_size
        stack.native.start("otelcol-kit")
        lines = log.read_bytes()[before:].decode().splitlines()
        opening = {number: line for number, line in enumerate(lines) if "queue/persistent_queue.go" in line}
        (listening,) = (number for number, line in enumerate(lines) if "Starting HTTP server" in line)

        for backend in ("tempo", "prometheus", "loki"):
            assert any(f"/{backend}" in line for line in opening.values()), lines
        assert max(opening) < listening
