"""When the receiver is asked again, and what is said about what was lost."""

from __future__ import annotations

import pytest

from otel_kit.telemetry.delivery import Gate
from otel_kit.telemetry.ledger import Ledger
from otel_kit.telemetry.outage import Outage
from otel_kit.telemetry.payload import Cause


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_up_to_half_a_minute_and_differ_between_processes() -> None:
    clock = Clock()
    gate = Gate(clock)
    assert (gate.down, gate.pause()) == (False, 0.0)
    for longest in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        gate.failed(None)
        assert gate.down
        assert longest / 2 <= gate.pause() <= longest
        clock.now += gate.pause()
        assert gate.pause() == 0.0
        assert gate.down, "one may try; the others wait for what becomes of it"
    gate.succeeded()
    assert (gate.down, gate.pause()) == (False, 0.0)
    assert len({_first_pause() for _ in range(20)}) > 10


def _first_pause() -> float:
    gate = Gate(Clock())
    gate.failed(None)
    return gate.pause()


def test_what_the_receiver_asks_for_is_the_least() -> None:
    gate = Gate(Clock())
    gate.failed(120.0)
    assert gate.pause() == 120.0
    gate = Gate(Clock())
    gate.failed(0.0)
    assert gate.pause() >= 0.5


def test_losses_are_said_once_a_minute_for_each_cause_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.dropped("traces", Cause.REFUSED, 3, "http://127.0.0.1:4318/v1/traces says 400: bad")
    ledger.dropped("logs", Cause.QUEUE_FULL, 1)
    ledger.speak()
    for _ in range(10):
        ledger.dropped("traces", Cause.REFUSED, 2)
        ledger.speak()
    assert [record.getMessage() for record in caplog.records] == [
        "otel-kit: 3 spans dropped (refused): the receiver refused them: http://127.0.0.1:4318/v1/traces says 400: bad",
        "otel-kit: 1 log records dropped (queue_full): they were made faster than they could be packed",
    ]
    caplog.clear()
    clock.now += 60
    ledger.speak()
    ledger.speak()
    [record] = caplog.records
    assert record.getMessage().startswith("otel-kit: 20 spans dropped (refused)")


def test_every_cause_is_counted_from_zero() -> None:
    ledger = Ledger()
    assert {value for value, _ in ledger.observe_dropped()} == {0.0}
    assert len(list(ledger.observe_dropped())) == 3 * len(Cause)
    ledger.dropped("metrics", Cause.EXPIRED, 7)
    told = {(a["otel_kit.signal"], a["otel_kit.cause"]): value for value, a in ledger.observe_dropped()}
    assert told["metrics", "expired"] == 7
    assert sum(told.values()) == 7


def test_outage_is_said_once_and_its_end_when_every_signal_is_through(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("http://collector:4318", "is kept on disk and sent later")
    outage.report("traces", delivered=True)
    outage.report("traces", delivered=False, reason="[Errno 111] Connection refused")
    outage.report("logs", delivered=False, reason="[Errno 111] Connection refused")
    outage.report("logs", delivered=True)
    assert [record.getMessage() for record in caplog.records] == [
        "otel-kit: traces do not reach http://collector:4318 ([Errno 111] Connection refused); the application goes on, "
        "telemetry is kept on disk and sent later; this is said once per outage"
    ]
    outage.report("traces", delivered=True)
    assert caplog.records[1].getMessage() == "otel-kit: telemetry reaches http://collector:4318 again after 0 s"
    assert len(caplog.records) == 2
