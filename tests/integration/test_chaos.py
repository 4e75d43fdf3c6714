"""A real process, a real receiver that misbehaves: what the application feels, what arrives, what is given up and counted.

Every scenario runs the same application: some hundred requests, each with a span, a log record and a count, while the
receiver is at fault, and as many when it is well again. The application measures itself what a request costs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from otel_kit.testing import OtlpSink
from otel_kit.testing.faults import (
    Accept,
    Behaviour,
    CutReading,
    CutTaken,
    Drip,
    Hang,
    Partial,
    RejectIf,
    Slow,
    Status,
)
from tests.integration.application import Application, Found, dropped, self_told
from tests.integration.conftest import Programs, eventually

#: Requests in each half.
HALF = 300


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The 99th percentile of a request's cost with a receiver that is well, seconds."""
    with OtlpSink() as sink:
        programs = Programs(tmp_path_factory.mktemp("calm"), sink)
        with Application(programs) as application:
            calm = application.serve(0, 2 * HALF)["p99"]
            application.end()
        programs.end()
        assert Found.at(sink) == Found(Counter(range(2 * HALF)), Counter(range(2 * HALF)), 2 * HALF)
        assert dropped(sink) == {}
    return calm


def poisoned(item: Any) -> bool:
    return getattr(item, "attributes", {}).get("n") == 7


@dataclass(frozen=True)
class Fault:
    """What the receiver does while it is at fault, and what that may cost."""

    behaviour: Behaviour | None
    #: Given up, by signal and cause.
    dropped: Callable[[Counter[tuple[str, str]]], bool] = lambda given_up: not given_up
    #: Numbers whose spans are gone for good.
    gone: frozenset[int] = frozenset()
    doubles: bool = False


FAULTS = {
    "refuses connections": Fault(None),
    "hangs": Fault(Hang()),
    "hangs before it reads": Fault(Hang(reading=False)),
    "answers a byte at a time": Fault(Drip(interval=0.2, where="headers"), doubles=True),
    "is slow": Fault(Slow(0.6)),
    "says 429": Fault(Status(429, retry_after=1)),
    "says 503": Fault(Status(503)),
    "says 500": Fault(Status(500, message="panic")),
    "cuts the connection in the body": Fault(CutReading(after=20)),
    "takes it and cuts the connection": Fault(CutTaken(), doubles=True),
    "refuses one record": Fault(
        RejectIf(poisoned), lambda given_up: given_up == Counter({("traces", "refused"): 1}), gone=frozenset({7})
    ),
}


#: Over gRPC those whose answers are gRPC's own.
SCENARIOS = [(fault, "http/protobuf") for fault in FAULTS] + [
    (fault, "grpc") for fault in ("refuses connections", "hangs", "says 429", "refuses one record")
]


@pytest.mark.parametrize(("fault", "protocol"), SCENARIOS)
def test_receiver_that(fault: str, protocol: str, programs: Programs, sink: OtlpSink, calm: float) -> None:
    what = FAULTS[fault]
    endpoint = sink.endpoint if protocol == "http/protobuf" else sink.grpc_endpoint
    assert endpoint is not None
    with Application(
        programs, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint
    ) as application:
        if what.behaviour is None:
            sink.pause()
        else:
            sink.script.set(what.behaviour)
        at_fault = application.serve(0, HALF)
        if what.behaviour is None:
            sink.resume()
        else:
            sink.script.set(Accept())
        well_again = application.serve(HALF, 2 * HALF)
        everything = set(range(2 * HALF))
        eventually(
            lambda: (
                (found := Found.at(sink)).spans.keys() == everything - what.gone
                and found.records.keys() == everything
                and found.orders == 2 * HALF
            ),
            30,
        )
        application.end()
    found = Found.at(sink)
    given_up = self_told(sink, "otel_kit.dropped.items")
    resent = self_told(sink, "otel_kit.resent.items")
    print(
        f"\n{protocol:13} {fault:33} p99 {at_fault['p99'] * 1e3:5.2f} ms (calm {calm * 1e3:4.2f}) worst"
        f" {at_fault['worst'] * 1e3:5.1f} ms, spans {len(found.spans)}, records {len(found.records)}, orders {found.orders:.0f},"
        f" doubled {found.doubled}, resent {sum(resent.values())}, dropped {dict(given_up)}"
    )
    assert at_fault["faults"] == well_again["faults"] == []
    # A wait for the network would be a second and more; this leaves room for a busy machine.
    assert at_fault["p99"] < calm + 0.1
    assert what.dropped(given_up), given_up
    if what.doubles:
        assert 0 < found.doubled <= resent["traces", ""] + resent["logs", ""]
    else:
        assert found.doubled == 0


def test_retry_after_is_obeyed_to_the_second(programs: Programs, sink: OtlpSink) -> None:
    with Application(programs) as application:
        sink.script.set(Status(429, retry_after=3), signal="traces")
        application.serve(0, 50)
        eventually(lambda: [a for a in sink.script.arrivals if a.signal == "traces"])
        [first] = [arrival.at for arrival in sink.script.arrivals if arrival.signal == "traces"]
        sink.script.set(Accept())
        application.serve(50, 100)
        eventually(lambda: len(Found.at(sink).spans) == 100, 20)
        second = [arrival.at for arrival in sink.script.arrivals if arrival.signal == "traces"][1]
        assert second - first >= 3
        # The other signals had no reason to wait.
        assert any(first < a.at < first + 3 for a in sink.script.arrivals if a.signal == "logs")
        application.end()


def test_back_off_grows_while_the_receiver_is_away(programs: Programs, sink: OtlpSink) -> None:
    sink.script.set(Status(503))
    with Application(programs) as application:
        until = time.monotonic() + 6
        sent = 0
        while time.monotonic() < until:
            application.serve(sent, sent + 50)
            sent += 50
        tries = [arrival.at for arrival in sink.script.arrivals if arrival.signal == "traces"]
        # 0.5 to 1 s, 1 to 2 s, 2 to 4 s: a request for every batch would have been dozens.
        assert 2 <= len(tries) <= 6
        sink.script.set(Accept())
        eventually(lambda: set(Found.at(sink).spans) == set(range(sent)), 30)
        assert Found.at(sink).doubled == 0
        application.end()


def test_credentials_that_are_refused_cost_one_request_a_batch_and_are_said_once(
    programs: Programs, sink: OtlpSink
) -> None:
    sink.script.set(Status(401, message="bad token"), signal="traces")
    with Application(programs) as application:
        application.serve(0, 200)
        eventually(lambda: dropped(sink).get(("traces", "refused")) == 200)
        assert len([a for a in sink.script.arrivals if a.signal == "traces"]) <= 20
        eventually(lambda: len(Found.at(sink).records) == 200)
        application.end()
    [process] = programs.running
    said = [line for line in programs.output(process).splitlines() if "otel-kit:" in line]
    assert len(said) == 1
    assert "bad token" in said[0]


def test_receiver_that_refuses_everything_is_not_asked_about_every_item(programs: Programs, sink: OtlpSink) -> None:
    sink.script.set(Status(400, message="not today"), signal="traces")
    with Application(programs, OTEL_BSP_SCHEDULE_DELAY="5000") as application:
        application.serve(0, 400)
        took = application.end()
    asked = len([a for a in sink.script.arrivals if a.signal == "traces"])
    assert dropped(sink) == {("traces", "refused"): 400}
    assert asked < 60, "one batch of 400"
    assert took < 4.5


def test_partial_success_is_counted_as_the_receiver_says(programs: Programs, sink: OtlpSink) -> None:
    sink.script.set(Partial(rejected=3), signal="logs", times=1)
    with Application(programs) as application:
        application.serve(0, 100)
        application.end()
    assert dropped(sink) == {("logs", "refused"): 3}


def test_batch_that_is_too_large_for_the_receiver_goes_in_parts(programs: Programs, sink: OtlpSink) -> None:
    sink.script.set(Status(413), signal="traces", times=1)
    with Application(programs) as application:
        application.serve(0, 100)
        application.end()
    found = Found.at(sink)
    assert found.spans == Counter(range(100))
    assert dropped(sink) == {}


def test_outage_that_outlasts_the_application_is_made_good_by_the_next_one(programs: Programs, sink: OtlpSink) -> None:
    sink.pause()
    for run in range(2):
        with Application(programs) as application:
            application.serve(run * HALF, (run + 1) * HALF)
            assert application.end() < 4.5
    assert not sink.spans
    sink.resume()
    with Application(programs) as application:
        application.serve(2 * HALF, 3 * HALF)
        eventually(
            lambda: (
                (found := Found.at(sink)).spans.keys() == found.records.keys() == set(range(3 * HALF))
                and found.orders == 3 * HALF
            ),
            30,
        )
        application.end()
    assert Found.at(sink).doubled == 0
    assert dropped(sink) == {}
    assert not list((programs.directory / "spool").rglob("*.otlp"))


def test_ten_minutes_of_traffic_and_a_restart_without_a_receiver_all_arrive(programs: Programs, sink: OtlpSink) -> None:
    # 20 requests a second for ten minutes, without the pauses between them: what is kept is the same.
    requests = 20 * 600
    sink.pause()
    with Application(programs, OTEL_BSP_MAX_QUEUE_SIZE="20000", OTEL_BLRP_MAX_QUEUE_SIZE="20000") as application:
        application.serve(0, requests // 2, pause=0)
        application.end()
    with Application(programs, OTEL_BSP_MAX_QUEUE_SIZE="20000", OTEL_BLRP_MAX_QUEUE_SIZE="20000") as application:
        application.serve(requests // 2, requests, pause=0)
        size = sum(file.stat().st_size for file in (programs.directory / "spool").rglob("*.otlp"))
        sink.resume()
        eventually(
            lambda: (
                (found := Found.at(sink)).spans.keys() == found.records.keys() == set(range(requests))
                and found.orders == requests
            ),
            60,
        )
        application.end()
    print(f"\n{requests} requests took {size / 2**20:.1f} MiB of disk; doubled: {Found.at(sink).doubled}")
    assert Found.at(sink).doubled == 0
    assert dropped(sink) == {}


def test_other_credentials_do_not_get_what_was_kept(programs: Programs, sink: OtlpSink) -> None:
    sink.pause()
    with Application(programs, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer one") as application:
        application.serve(0, 50)
        application.end()
    sink.resume()
    with Application(programs, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer two") as application:
        application.serve(50, 100)
        eventually(lambda: len(Found.at(sink).spans) == 50)
        application.end()
    assert set(Found.at(sink).spans) == set(range(50, 100))
    with Application(programs, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer one") as application:
        eventually(lambda: set(Found.at(sink).spans) == set(range(100)), 20)
        application.end()


def test_without_a_disk_an_outage_is_bridged_in_memory(programs: Programs, sink: OtlpSink) -> None:
    sink.pause()
    with Application(programs, OTEL_KIT_SPOOL="off") as application:
        application.serve(0, HALF)
        sink.resume()
        eventually(lambda: set(Found.at(sink).spans) == set(Found.at(sink).records) == set(range(HALF)), 20)
        application.end()
    assert Found.at(sink).doubled == 0
    assert not (programs.directory / "spool").exists()


def test_disk_that_cannot_be_written_costs_one_warning(programs: Programs, sink: OtlpSink) -> None:
    (programs.directory / "file").write_text("in the way")
    sink.pause()
    with Application(programs, OTEL_KIT_SPOOL_DIR=str(programs.directory / "file" / "spool")) as application:
        application.serve(0, 50)
        sink.resume()
        eventually(lambda: set(Found.at(sink).spans) == set(range(50)), 20)
        application.end()
    [process] = programs.running
    assert programs.output(process).count("nothing can be kept on disk") == 1
