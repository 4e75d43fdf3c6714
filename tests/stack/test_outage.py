"""A backend that is away for half a minute costs nothing: not its own data, and not the others'."""

from __future__ import annotations

import time

import pytest

from otel_kit.stack.query import poll
from tests.stack.conftest import Stack
from tests.stack.counting import FOUND, missing
from tests.stack.otlp import Traffic

OUTAGE = 30.0
SIGNAL = {"tempo": "spans", "prometheus": "points", "loki": "lines"}


@pytest.mark.parametrize("backend", SIGNAL)
def test_everything_sent_while_a_backend_was_away_is_found_afterwards(stack: Stack, backend: str) -> None:
    with Traffic(stack.endpoints.otlp_http, f"outage-{backend}") as traffic:
        assert poll(lambda: len(traffic.accepted["lines"]) > 20, 20)
        stack.native.stop(backend)
        away = time.monotonic()
        others = {other: signal for other, signal in SIGNAL.items() if other != backend}
        before = {signal: set(accepted) for signal, accepted in traffic.accepted.items()}
        poll(lambda: False, OUTAGE - 10)
        # The other signals flow on meanwhile: what was sent during the outage is there before it ends.
        during = {signal: traffic.accepted[signal] - before[signal] for signal in others.values()}
        for signal in others.values():
            assert during[signal]
            assert poll(lambda signal=signal: set(FOUND[signal](stack.query, traffic)) & during[signal], 20)
        poll(lambda: False, OUTAGE - (time.monotonic() - away))
        stack.native.start(backend)
        again = len(traffic.accepted[SIGNAL[backend]])
        assert poll(lambda: len(traffic.accepted[SIGNAL[backend]]) > again + 20, 20)

    assert len(traffic.accepted["spans"]) > 300
    for signal in SIGNAL.values():
        assert missing(stack.query, traffic, signal, 60) == set()
        # Exactly those, each once: retries have doubled nothing.
        assert FOUND[signal](stack.query, traffic) == sorted(traffic.accepted[signal])
