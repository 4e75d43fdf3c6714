"""One attempt at one request, over real sockets, against a receiver that misbehaves on demand."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import requests
from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_kit.settings import read
from otel_kit.telemetry import transport
from otel_kit.telemetry.payload import Signal, Verdict
from otel_kit.telemetry.transport import Transport
from otel_kit.telemetry.transport.attempt import Attempt
from otel_kit.telemetry.transport.verdicts import http_verdict, of_http, one_line, seconds_of
from otel_kit.testing import OtlpSink, Tls
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

from .conftest import Programs, eventually, free_port

SIGNALS: tuple[Signal, ...] = ("traces", "metrics", "logs")


def log_request(*bodies: str) -> bytes:
    """A request with one log record for each text."""
    request = ExportLogsServiceRequest()
    records = request.resource_logs.add().scope_logs.add().log_records
    for body in bodies:
        records.add().body.string_value = body
    return request.SerializeToString()


def request_of(signal: Signal) -> bytes:
    """The smallest request with one item."""
    if signal == "logs":
        return log_request("hello")
    if signal == "traces":
        traces = ExportTraceServiceRequest()
        traces.resource_spans.add().scope_spans.add().spans.add(name="work", trace_id=b"t" * 16, span_id=b"s" * 8)
        return traces.SerializeToString()
    metrics = ExportMetricsServiceRequest()
    metrics.resource_metrics.add().scope_metrics.add().metrics.add(name="depth").gauge.data_points.add(as_int=1)
    return metrics.SerializeToString()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("OTEL_") or name.lower().endswith("_proxy") or name.endswith("_CA_BUNDLE"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(transport, "_said", set())


Build = Callable[..., Transport]


@pytest.fixture
def build() -> Iterator[Build]:
    """Builds transports, and closes them."""
    built: list[Transport] = []

    def make(
        endpoint: str | None, signal: Signal = "logs", protocol: str = "http/protobuf", **keywords: Any
    ) -> Transport:
        made = transport.build(read({"endpoint": endpoint, "protocol": protocol, **keywords}, {}), signal)
        assert made is not None
        built.append(made)
        return made

    yield make
    for made in built:
        made.close()


def over(protocol: str, sink: OtlpSink) -> dict[str, Any]:
    """What makes a transport speak a protocol with a receiver."""
    return {"endpoint": sink.grpc_endpoint if protocol == "grpc" else sink.endpoint, "protocol": protocol}


both = pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])


# Delivered


@both
@pytest.mark.parametrize("signal", SIGNALS)
def test_a_request_of_each_signal_arrives(protocol: str, signal: Signal, sink: OtlpSink, build: Build) -> None:
    answer = build(signal=signal, **over(protocol, sink)).send(request_of(signal))
    assert (answer.verdict, answer.reason, answer.rejected, answer.perhaps_taken) == (Verdict.DELIVERED, "", 0, False)
    assert len({"traces": sink.spans, "metrics": sink.points, "logs": sink.logs}[signal]) == 1
    assert [arrival.signal for arrival in sink.script.arrivals] == [signal]


@both
@pytest.mark.parametrize("signal", SIGNALS)
def test_partial_success_is_told(protocol: str, signal: Signal, sink: OtlpSink, build: Build) -> None:
    sink.script.set(Partial(3, "three too\nold"))
    answer = build(signal=signal, **over(protocol, sink)).send(request_of(signal))
    assert (answer.verdict, answer.rejected, answer.reason) == (Verdict.DELIVERED, 3, "three too old")


@pytest.mark.parametrize(
    ("kind", "body", "rejected"),
    [
        ("application/x-protobuf", b"\xff\xff\xff garbage", 0),
        ("text/html", b"<html>fine</html>", 0),
        ("application/json", b"{}", 0),
        ("application/json", b"not json", 0),
        ("application/json", b'{"partialSuccess": {"rejectedLogRecords": "2", "errorMessage": "old"}}', 2),
        ("application/json", b'{"partialSuccess": {"rejectedLogRecords": -2}}', 0),
        ("application/json", b'{"partialSuccess": [1]}', 0),
    ],
)
def test_whatever_comes_with_a_2xx_it_is_delivered(
    kind: str, body: bytes, rejected: int, sink: OtlpSink, build: Build
) -> None:
    sink.script.set(Status(202, body=body, kind=kind))
    answer = build(sink.endpoint).send(log_request("a"))
    assert (answer.verdict, answer.status, answer.rejected) == (Verdict.DELIVERED, "202", rejected)


def test_an_endless_answer_is_read_to_its_bound_only(sink: OtlpSink, build: Build) -> None:
    sink.script.set(Status(200, body=b"x" * 20_000_000, kind="text/plain"))
    way = build(sink.endpoint)
    began = time.monotonic()
    assert way.send(log_request("a")).verdict is Verdict.DELIVERED
    assert way.send(log_request("b")).verdict is Verdict.DELIVERED
    assert time.monotonic() - began < 3
    first, second = sink.script.arrivals
    assert first.peer != second.peer  # the rest of the first answer was never waited for


# Refused


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (301, Verdict.UNWELCOME), (307, Verdict.UNWELCOME), (400, Verdict.REFUSED), (401, Verdict.UNWELCOME),
        (403, Verdict.UNWELCOME), (404, Verdict.UNWELCOME), (405, Verdict.UNWELCOME), (408, Verdict.LATER),
        (413, Verdict.TOO_LARGE), (415, Verdict.UNWELCOME), (422, Verdict.REFUSED), (429, Verdict.LATER),
        (500, Verdict.LATER), (501, Verdict.UNWELCOME), (502, Verdict.LATER), (503, Verdict.LATER),
        (504, Verdict.LATER), (505, Verdict.UNWELCOME),
    ],
)  # fmt: skip
def test_http_statuses_are_judged(status: int, verdict: Verdict, sink: OtlpSink, build: Build) -> None:
    sink.script.set(Status(status, message="because"))
    answer = build(sink.endpoint).send(log_request("a"))
    assert (answer.verdict, answer.status, answer.reason) == (verdict, str(status), f"{status}: because")
    assert not answer.perhaps_taken
    assert sink.script.counts == {"refused": 1}


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("CANCELLED", Verdict.LATER), ("UNKNOWN", Verdict.LATER), ("INVALID_ARGUMENT", Verdict.REFUSED),
        ("DEADLINE_EXCEEDED", Verdict.LATER), ("NOT_FOUND", Verdict.UNWELCOME), ("ALREADY_EXISTS", Verdict.UNWELCOME),
        ("PERMISSION_DENIED", Verdict.UNWELCOME), ("RESOURCE_EXHAUSTED", Verdict.LATER),
        ("FAILED_PRECONDITION", Verdict.UNWELCOME), ("ABORTED", Verdict.LATER), ("OUT_OF_RANGE", Verdict.LATER),
        ("UNIMPLEMENTED", Verdict.UNWELCOME), ("INTERNAL", Verdict.LATER), ("UNAVAILABLE", Verdict.LATER),
        ("DATA_LOSS", Verdict.LATER), ("UNAUTHENTICATED", Verdict.UNWELCOME),
    ],
)  # fmt: skip
def test_grpc_codes_are_judged(code: str, verdict: Verdict, sink: OtlpSink, build: Build) -> None:
    sink.script.set(Status(0, message="because", code=code))
    answer = build(**over("grpc", sink)).send(log_request("a"))
    assert (answer.verdict, answer.status, answer.reason) == (verdict, code, f"{code}: because")
    assert (answer.perhaps_taken, answer.retry_after) == (False, None)


def test_grpc_says_too_large_by_exhausted_resources(sink: OtlpSink, build: Build) -> None:
    sink.script.set(Status(413, message="5 vs. 4"))
    answer = build(**over("grpc", sink)).send(log_request("a"))
    assert (answer.verdict, answer.status) == (Verdict.TOO_LARGE, "RESOURCE_EXHAUSTED")


def test_a_message_above_the_grpc_servers_own_limit_is_too_large(sink: OtlpSink, build: Build) -> None:
    answer = build(**over("grpc", sink)).send(log_request("x" * 5_000_000))
    assert answer.verdict is Verdict.TOO_LARGE


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_retry_info_is_honoured(code: str, sink: OtlpSink, build: Build) -> None:
    sink.script.set(Status(0, retry_after=2.5, code=code, message="message larger than max"))
    answer = build(**over("grpc", sink)).send(log_request("a"))
    assert (answer.verdict, answer.retry_after) == (Verdict.LATER, 2.5)


@both
def test_one_item_makes_a_request_refused(protocol: str, sink: OtlpSink, build: Build) -> None:
    sink.script.set(RejectIf(lambda record: record.body == "bad", message="bad record"))
    way = build(**over(protocol, sink))
    assert way.send(log_request("good", "bad")).verdict is Verdict.REFUSED
    assert way.send(log_request("good")).verdict is Verdict.DELIVERED
    assert [record.body for record in sink.logs] == ["good"]


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [("2", 2, 2), ("0", 0, 0), ("-5", 0, 0), ("1.5", 1.5, 1.5), ("86400", 300, 300), (formatdate(0, usegmt=True), 0, 0),
     (60, 30, 60), (9000, 300, 300)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(
    given: str | int, least: float, most: float, sink: OtlpSink, build: Build
) -> None:
    if isinstance(given, int):  # a date so many seconds from now
        given = formatdate(time.time() + given, usegmt=True)
    sink.script.set(Status(503, retry_after=given))
    answer = build(sink.endpoint).send(log_request("a"))
    assert answer.retry_after is not None
    assert least <= answer.retry_after <= most


@pytest.mark.parametrize("given", ["soon", "nan", "inf", "", "Wed, 99 Foo 2020"])
def test_a_retry_after_that_means_nothing_is_none(given: str) -> None:
    assert seconds_of(given) is None


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("application/x-protobuf", RpcStatus(message="a\nb").SerializeToString(), "503: a b"),
        ("application/x-protobuf", b"\xff", "503 Service Unavailable"),
        ("application/json", b'{"code": 14, "message": "busy"}', "503: busy"),
        ("application/json", b'{"error": {"message": "busy"}}', "503: busy"),
        ("application/json", b'{"error": "busy"}', "503: busy"),
        ("text/html", b"<html><head><title>No\nserver</title></head><body>x</body></html>", "503: No server"),
        ("text/html", b"<p>upstream <b>gone</b></p>", "503: upstream gone"),
        ("text/plain", b"no healthy upstream", "503: no healthy upstream"),
        ("text/plain", b"", "503 Service Unavailable"),
    ],
)
def test_the_reason_is_what_the_body_says(kind: str, body: bytes, reason: str, sink: OtlpSink, build: Build) -> None:
    sink.script.set(Status(503, body=body, kind=kind))
    assert build(sink.endpoint).send(log_request("a")).reason == reason


def test_a_reason_is_short_and_shows_no_secret(sink: OtlpSink, build: Build) -> None:
    text = b"no: tok-4711-secret at http://bob:hunter22@host/ password=abc123xyz " + b"x" * 100_000
    sink.script.set(Status(401, body=text, kind="text/plain"))
    answer = build(sink.endpoint, headers={"Authorization": "Bearer tok-4711-secret"}).send(log_request("a"))
    assert len(answer.reason) <= 300
    for secret in ("tok-4711", "hunter22", "abc123xyz"):
        assert secret not in answer.reason


def test_long_bodies_are_searched_in_linear_time() -> None:
    for body in (b"<title" * 11_000, b"<script" * 9_000, b"<" * 65_536, b"{" * 65_536, b" " * 65_536, b"://" * 20_000):
        began = time.monotonic()
        for kind in ("text/html", "application/json", "text/plain", "application/x-protobuf", ""):
            of_http("logs", 503, kind, None, body, ())
        assert time.monotonic() - began < 5


def test_redirects_are_answers(sink: OtlpSink, build: Build) -> None:
    with OtlpSink() as other:
        sink.script.set(Status(307, headers={"Location": f"{other.endpoint}/v1/logs"}, body=b""))
        answer = build(sink.endpoint, headers={"authorization": "Bearer 12345678"}).send(log_request("a"))
        assert (answer.verdict, answer.reason) == (Verdict.UNWELCOME, "307 Temporary Redirect")
        assert other.script.arrivals == []


# Connections that fail


@both
def test_a_refused_connection_is_told_in_the_systems_words(protocol: str, build: Build) -> None:
    answer = build(f"http://127.0.0.1:{free_port()}", protocol=protocol).send(log_request("a"))
    assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, False)
    assert "Connection refused" in answer.reason
    if protocol != "grpc":
        assert answer.reason == "[Errno 111] Connection refused"
        assert answer.status == "ConnectionError"


@both
def test_a_name_that_is_none_is_told(protocol: str, build: Build) -> None:
    answer = build("http://collector.invalid:4318", protocol=protocol).send(log_request("a"))
    assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, False)
    assert "name" in answer.reason.lower()


@both
def test_a_receiver_that_comes_back_gets_the_next_attempt(protocol: str, sink: OtlpSink, build: Build) -> None:
    way = build(**over(protocol, sink))
    assert way.send(log_request("a")).verdict is Verdict.DELIVERED
    sink.pause()
    answer = way.send(log_request("b"))
    assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, False)
    sink.resume()
    eventually(lambda: way.send(log_request("c")).verdict is Verdict.DELIVERED, 5)


def test_a_connection_that_is_cut_within_the_request_is_not_perhaps_taken(sink: OtlpSink, build: Build) -> None:
    sink.script.set(CutReading(1))
    answer = build(sink.endpoint).send(log_request("x" * 20_000_000))
    assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, False)
    assert sink.logs == []


@both
def test_a_connection_that_is_cut_before_the_answer_is_perhaps_taken(
    protocol: str, sink: OtlpSink, build: Build
) -> None:
    sink.script.set(CutTaken())
    answer = build(**over(protocol, sink)).send(log_request("a"))
    assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, True)
    assert "broke before an answer came" in answer.reason
    assert len(sink.logs) == len(sink.script.arrivals) == 1


def test_a_real_cut_of_a_grpc_connection_is_perhaps_taken(sink: OtlpSink, build: Build) -> None:
    sink.script.set(Hang())
    way = build(**over("grpc", sink))
    threading.Thread(target=lambda: (eventually(lambda: sink.script.counts["hung"]), sink.pause()), daemon=True).start()
    answer = way.send(log_request("a"))
    assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, True), answer


def test_grpc_connects_soon_after_a_long_absence(sink: OtlpSink, build: Build) -> None:
    way = build(**over("grpc", sink))
    sink.pause()
    away_until = time.monotonic() + 6  # by then gRPC's own pauses would be longer than two seconds
    while time.monotonic() < away_until:
        assert way.send(log_request("a")).verdict is Verdict.LATER
        time.sleep(0.1)
    sink.resume()
    eventually(lambda: way.send(log_request("b")).verdict is Verdict.DELIVERED, 2)


@both
def test_a_connection_that_nobody_carries_any_more_is_left_after_one_deadline(
    protocol: str, sink: OtlpSink, build: Build
) -> None:
    target = int(str(over(protocol, sink)["endpoint"]).rpartition(":")[2])
    with _Relay(target) as relay:
        way = build(relay.endpoint, protocol=protocol)
        assert way.send(log_request("a")).verdict is Verdict.DELIVERED
        relay.forget()
        answer = way.send(log_request("b"), 0.5)
        assert (answer.reason, answer.perhaps_taken) == ("no answer within 0.5 s", True)
        assert way.send(log_request("c"), 3).verdict is Verdict.DELIVERED
    assert [record.body for record in sink.logs] == ["a", "c"]


# Connections that were kept alive


def test_a_connection_is_used_again(sink: OtlpSink, build: Build) -> None:
    way = build(sink.endpoint)
    for text in "abc":
        assert way.send(log_request(text)).verdict is Verdict.DELIVERED
    assert len({arrival.peer for arrival in sink.script.arrivals}) == 1


def test_a_restart_of_the_receiver_between_two_attempts_does_not_show(sink: OtlpSink, build: Build) -> None:
    way = build(sink.endpoint)
    assert way.send(log_request("a")).verdict is Verdict.DELIVERED
    sink.pause()
    sink.resume()
    answer = way.send(log_request("b"))
    assert (answer.verdict, answer.perhaps_taken) == (Verdict.DELIVERED, False), answer
    assert [record.body for record in sink.logs] == ["a", "b"]


def test_a_kept_connection_that_breaks_without_an_answer_is_mended_once(sink: OtlpSink, build: Build) -> None:
    way = build(sink.endpoint)
    assert way.send(log_request("a")).verdict is Verdict.DELIVERED
    sink.script.set(CutTaken(), times=1)
    answer = way.send(log_request("b"))
    assert (answer.verdict, answer.perhaps_taken) == (Verdict.DELIVERED, True)
    assert [record.body for record in sink.logs] == ["a", "b", "b"]
    sink.script.set(CutTaken())
    answer = way.send(log_request("c"))
    assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, True)
    assert len(sink.script.arrivals) == 5  # one more, not more than one


def test_a_new_connection_that_breaks_is_not_mended(sink: OtlpSink, build: Build) -> None:
    sink.script.set(CutTaken(), times=1)
    assert build(sink.endpoint).send(log_request("a")).verdict is Verdict.LATER
    assert len(sink.script.arrivals) == 1


def test_a_kept_connection_that_breaks_within_the_answer_is_not_mended(build: Build) -> None:
    with _Answers([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 2"]) as server:
        way = build(server.endpoint)
        assert way.send(log_request("a")).verdict is Verdict.DELIVERED
        answer = way.send(log_request("b"))
        assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, True)
        assert server.requests == 2


# Time


@both
@pytest.mark.parametrize(
    "behaviour",
    [Hang(), Hang(reading=False), Slow(5), Drip(where="status"), Drip(where="headers"), Drip(0.01, where="headers")],
    ids=str,
)
def test_an_attempt_ends_at_its_deadline(protocol: str, behaviour: Behaviour, sink: OtlpSink, build: Build) -> None:
    sink.script.set(behaviour)
    way = build(**over(protocol, sink))
    began = time.monotonic()
    answer = way.send(log_request("a"), timeout=0.6)
    assert 0.55 <= time.monotonic() - began < 2.5
    assert (answer.verdict, answer.reason, answer.perhaps_taken) == (Verdict.LATER, "no answer within 0.6 s", True)
    sink.script.set(Accept())
    assert way.send(log_request("b"), timeout=2).verdict is Verdict.DELIVERED


def test_a_body_that_drips_after_a_200_is_delivered_at_the_deadline(sink: OtlpSink, build: Build) -> None:
    sink.script.set(Drip(where="body"))
    began = time.monotonic()
    answer = build(sink.endpoint).send(log_request("a"), timeout=0.6)
    assert time.monotonic() - began < 2.5
    assert answer.verdict is Verdict.DELIVERED


def test_a_dripping_receiver_keeps_no_thread(sink: OtlpSink, build: Build) -> None:
    way = build(sink.endpoint)
    for where in ("status", "headers", "body"):
        sink.script.set(Drip(0.02, where=where))  # type: ignore[arg-type]
        for _ in range(4):
            way.send(log_request("a"), timeout=0.15)
    eventually(lambda: len([t for t in threading.enumerate() if t.name == "otel-kit-transport"]) <= 2, 20)
    sink.script.set(Accept())
    assert way.send(log_request("b")).verdict is Verdict.DELIVERED


@both
def test_a_receiver_that_accepts_no_connection_is_waited_for_no_longer(protocol: str, build: Build) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        began = time.monotonic()
        way = build("http://{}:{}".format(*listener.getsockname()), protocol=protocol)
        answer = way.send(log_request("a"), timeout=0.6)
        assert time.monotonic() - began < 2.5
        assert (answer.verdict, answer.reason, answer.perhaps_taken) == (
            Verdict.LATER, "no connection within 0.6 s", False,
        )  # fmt: skip
        for filler in fillers:
            filler.close()


def test_a_request_that_is_not_taken_off_the_wire_is_not_perhaps_taken(sink: OtlpSink, build: Build) -> None:
    sink.script.set(Hang(reading=False))
    answer = build(sink.endpoint).send(log_request("x" * 30_000_000), timeout=0.6)
    assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, False)
    assert answer.reason == "the request was not taken within 0.6 s"


def test_a_resolver_that_hangs_is_not_waited_for_and_its_request_never_sent(
    sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    resolve = socket.getaddrinfo

    def hang(*arguments: Any, **more: Any) -> Any:
        go_on.wait(10)
        return resolve(*arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    way = build(sink.endpoint)
    began = time.monotonic()
    answer = way.send(log_request("late"), timeout=0.4)
    assert time.monotonic() - began < 2.5
    assert (answer.reason, answer.perhaps_taken) == ("no connection within 0.4 s", False)
    for _ in range(3):
        way.send(log_request("late"), timeout=0.05)
    answer = way.send(log_request("late"), timeout=5)
    assert answer.reason == "earlier attempts still wait for a connection"  # and no fifth thread
    go_on.set()
    eventually(lambda: way.send(log_request("now")).verdict is Verdict.DELIVERED)
    assert {record.body for record in sink.logs} == {"now"}


@both
def test_the_variable_bounds_an_attempt_too(
    protocol: str, sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.script.set(Hang())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "0.3")
    for timeout in (None, 30.0):
        began = time.monotonic()
        assert build(**over(protocol, sink)).send(log_request("a"), timeout).reason == "no answer within 0.3 s"
        assert time.monotonic() - began < 2.5


@both
def test_no_time_is_no_attempt(protocol: str, sink: OtlpSink, build: Build) -> None:
    for timeout in (0.0, -1.0):
        assert build(**over(protocol, sink)).send(log_request("a"), timeout).verdict is Verdict.LATER
    assert sink.script.arrivals == []


@pytest.mark.parametrize(
    "behaviour", [Hang(), Hang(reading=False), Drip(where="status"), Drip(where="headers")], ids=str
)
def test_without_a_thread_to_help_a_silent_receiver_is_still_bounded(
    behaviour: Behaviour, sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the interpreter's end, when none can be started."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    way = build(sink.endpoint)
    sink.script.set(behaviour)
    with monkeypatch.context() as patched:
        original = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            return refuse(thread) if thread.name == "otel-kit-transport" else original(thread)

        patched.setattr(threading.Thread, "start", start)
        began = time.monotonic()
        answer = way.send(log_request("a"), timeout=0.4)
        assert time.monotonic() - began < 2.5
        assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, True)
        sink.script.set(Accept())
        assert way.send(log_request("b")).verdict is Verdict.DELIVERED


# Closing


@both
@pytest.mark.parametrize("behaviour", [Hang(), Hang(reading=False), Drip(where="headers")], ids=str)
def test_closing_ends_an_attempt_under_way(protocol: str, behaviour: Behaviour, sink: OtlpSink, build: Build) -> None:
    sink.script.set(behaviour)
    way = build(**over(protocol, sink))
    http = protocol != "grpc"

    def close() -> None:
        eventually(lambda: sink.script.counts["hung"] + sink.script.counts["dripped"])
        eventually(lambda: all(attempt.sent for attempt in way._process.attempts) if http else True)
        way.close()

    closer = threading.Thread(target=close)
    closer.start()
    began = time.monotonic()
    answer = way.send(log_request("a"))
    assert time.monotonic() - began < 2
    closer.join()
    assert (answer.verdict, answer.reason) == (Verdict.LATER, "closed before an answer came")
    assert answer.perhaps_taken
    way.close()
    answer = way.send(log_request("b"))
    assert (answer.verdict, answer.reason) == (Verdict.LATER, "the transport is closed")
    assert len(sink.script.arrivals) == 1


def test_an_abandoned_attempt_connects_no_more() -> None:
    attempt = Attempt(1.0)
    attempt.abandon()
    with pytest.raises(ConnectionAbortedError):
        attempt.uses(object())  # type: ignore[arg-type]


@both
def test_the_receiver_stops_while_it_holds_connections(protocol: str, build: Build) -> None:
    sink = OtlpSink()
    sink.start()
    sink.script.set(Hang())
    way = build(**over(protocol, sink))
    sender = threading.Thread(target=way.send, args=(log_request("a"), 5.0))
    sender.start()
    eventually(lambda: sink.script.counts["hung"])
    began = time.monotonic()
    sink.stop()
    assert time.monotonic() - began < 2
    sender.join(6)


# Forks


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_forked_child_has_a_connection_of_its_own_and_leaves_the_parents_alone(
    protocol: str, programs: Programs, sink: OtlpSink
) -> None:
    done = programs.run(
        """
        import os, sys, threading, time
        from otel_kit.settings import read
        from otel_kit.telemetry import transport
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

        def request(text):
            made = ExportLogsServiceRequest()
            made.resource_logs.add().scope_logs.add().log_records.add().body.string_value = text
            return made.SerializeToString()

        way = transport.build(read({}), "logs")
        print(way.send(request("parent")).verdict)
        children = []
        for number in range(2):
            lock = way._process.lock
            lock.acquire()  # as another thread may hold it just then
            child = os.fork()
            if child:
                lock.release()
            else:
                answer = way.send(request(f"child {number}"), 5)
                print(answer.verdict, answer.reason, flush=True)
                way.close()
                del way
                sys.exit(0)  # with every finalizer
            children.append(child)
        for child in children:
            print(os.waitpid(child, 0)[1])
        print(way.send(request("parent again")).verdict)
        """,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        **({"OTEL_EXPORTER_OTLP_ENDPOINT": sink.grpc_endpoint or ""} if protocol == "grpc" else {}),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(record.body for record in sink.logs) == ["child 0", "child 1", "parent", "parent again"], (
        done.stdout + done.stderr
    )
    arrivals = sink.script.arrivals
    assert arrivals[0].peer == arrivals[-1].peer  # the parent's connection has lived through it
    assert len({arrival.peer for arrival in arrivals}) == 3
    assert "delivered" in done.stdout
    assert set(done.stdout.split()) <= {"delivered", "0"}, done.stdout


# What is sent


@both
def test_requests_are_compressed_as_asked(
    protocol: str, sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted in ("gzip", "none", "GZIP") + (() if protocol == "grpc" else ("deflate",)):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", wanted)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "nonsense, but the signal's own goes before")
        assert build(**over(protocol, sink)).send(log_request("x" * 10_000)).verdict is Verdict.DELIVERED
        if protocol != "grpc":
            headers = sink.script.arrivals[-1].headers
            assert headers.get("content-encoding", "none") == wanted.lower()
            assert (int(headers["content-length"]) < 1000) is (wanted != "none")
    assert len(sink.logs) == len(sink.script.arrivals)


@both
def test_headers_come_from_the_keyword_then_the_signal_then_all(
    protocol: str, sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-common=1,x-both=common")
    build(**over(protocol, sink)).send(log_request("a"))
    assert sink.script.arrivals[-1].headers.items() >= {"x-common": "1", "x-both": "common"}.items()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x-own=a%20b, x-both=own,authorization=Basic abc==")
    build(**over(protocol, sink), headers={"X-Own": "keyword"}).send(log_request("a"))
    headers = sink.script.arrivals[-1].headers
    assert headers.items() >= {"x-own": "keyword", "x-both": "own", "authorization": "Basic abc=="}.items()
    assert "x-common" not in headers
    build(signal="traces", **over(protocol, sink)).send(request_of("traces"))
    assert sink.script.arrivals[-1].headers["x-both"] == "common"


@both
def test_the_user_agent_names_exporter_and_distribution(protocol: str, sink: OtlpSink, build: Build) -> None:
    build(**over(protocol, sink)).send(log_request("a"))
    agent = sink.script.arrivals[-1].headers["user-agent"]
    assert agent.startswith("otel-kit/")
    assert " OTel-OTLP-Exporter-Python/" in agent
    build(**over(protocol, sink), headers={"user-agent": "mine/1"}).send(log_request("a"))
    assert sink.script.arrivals[-1].headers["user-agent"].startswith("mine/1")


def test_a_header_that_cannot_be_sent_is_left_out_and_its_value_not_shown(
    sink: OtlpSink, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"x-bad": "top\nsecret", "x bad": "hidden", "content-type": "text/plain", "x-good": "1"}
    assert build(sink.endpoint, headers=headers).send(log_request("a")).verdict is Verdict.DELIVERED
    arrived = sink.script.arrivals[-1].headers
    assert (arrived["x-good"], arrived["content-type"]) == ("1", "application/x-protobuf")
    assert "x-bad" not in arrived
    assert [name for name in ("'x-bad'", "'x bad'", "'content-type'") if name not in caplog.text] == []
    assert "secret" not in caplog.text
    assert "hidden" not in caplog.text


def test_passwords_come_from_the_url_and_never_from_netrc(
    sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    build(sink.endpoint).send(log_request("a"))
    assert "authorization" not in sink.script.arrivals[-1].headers
    with_password = sink.endpoint.replace("://", "://bob:p%40ss@")
    build(with_password).send(log_request("a"))
    assert sink.script.arrivals[-1].headers["authorization"] == requests.auth._basic_auth_str("bob", "p@ss")
    build(with_password, headers={"Authorization": "Bearer x"}).send(log_request("a"))
    assert sink.script.arrivals[-1].headers["authorization"] == "Bearer x"
    settings = read({"endpoint": with_password}, {})
    assert transport.destination(settings, "logs").shown == f"{sink.endpoint}/v1/logs"


def test_a_proxy_of_the_environment_is_used(sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    with _Answers([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        assert build("http://collector.invalid:4318").send(log_request("a")).verdict is Verdict.DELIVERED
        assert proxy.first.startswith(b"POST http://collector.invalid:4318/v1/logs HTTP/1.1\r\n")


def test_an_attempt_makes_no_spans_of_its_own(sink: OtlpSink, build: Build) -> None:
    made = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(made))
    RequestsInstrumentor().instrument(tracer_provider=provider)
    try:
        assert build(sink.endpoint).send(log_request("a")).verdict is Verdict.DELIVERED
        assert made.get_finished_spans() == ()
        requests.get(sink.endpoint, timeout=5)
        assert len(made.get_finished_spans()) == 1
    finally:
        RequestsInstrumentor().uninstrument()
        provider.shutdown()


# Where it is sent


def test_the_signals_own_endpoint_is_used_as_it_is(
    sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", f"{sink.endpoint}/elsewhere?key=abcdefgh")
    answer = build("http://127.0.0.1:1").send(log_request("a"))
    assert answer.status == "404"  # the receiver knows no such path
    settings = read({}, {})
    assert transport.destination(settings, "logs").shown == f"{sink.endpoint}/elsewhere"
    assert transport.destination(settings, "traces").shown == "http://127.0.0.1:4318/v1/traces"


@both
def test_an_endpoint_may_be_without_a_scheme(
    protocol: str, sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
    given = over(protocol, sink)
    given["endpoint"] = given["endpoint"].removeprefix("http://")
    assert build(**given).send(log_request("a")).verdict is Verdict.DELIVERED
    if protocol == "grpc":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_INSECURE", "false")
        assert build(**given).send(log_request("a"), 2).verdict is Verdict.LATER


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "soon", "seconds, more than 0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", "seconds, more than 0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "nan", "seconds, more than 0"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "none, gzip, deflate"),
        ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/json", "http/protobuf or grpc"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "ftp://somewhere", "an http:// or https:// URL"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "somewhere", "an http:// or https:// URL"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://host:nan", "an http:// or https:// URL"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem", "a file that can be read"),
        ("OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY", "/", "a file that can be read"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "yes", "true or false"),
        ("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "nobody", "none, no installed package offers one"),
    ],
)
def test_a_value_that_is_not_accepted_is_named_once_and_the_default_used(
    variable: str, value: str, accepted: str, sink: OtlpSink, build: Build,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    assert build(sink.endpoint).send(log_request("a")).verdict is Verdict.DELIVERED
    build(sink.endpoint)
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    for part in (variable, repr(value), accepted, "Going on with"):
        assert part in record.getMessage()


def test_deflate_is_not_grpcs(
    sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "deflate")
    assert build(**over("grpc", sink)).send(log_request("a")).verdict is Verdict.DELIVERED
    assert "accepted: none, gzip. Going on with 'none'" in caplog.text


def test_a_signal_may_have_a_protocol_of_its_own(sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", str(sink.grpc_endpoint))
    assert build(sink.endpoint).send(log_request("a")).verdict is Verdict.DELIVERED
    assert build(sink.endpoint, "traces").send(request_of("traces")).verdict is Verdict.DELIVERED
    assert [arrival.protocol for arrival in sink.script.arrivals] == ["grpc", "http"]


def test_without_the_extra_grpc_becomes_http(
    sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("otel_kit.telemetry.transport.options.find_spec", lambda name: None)
    assert build(sink.endpoint, protocol="grpc").send(log_request("a")).verdict is Verdict.DELIVERED
    build(sink.endpoint, "traces", protocol="grpc")
    assert caplog.text.count("pip install 'otel-kit[grpc]'") == 1


def test_a_url_that_cannot_be_requested_is_nobodys_fault_but_its_own(build: Build) -> None:
    answer = build("http://exa_mple..invalid:80").send(log_request("a"))
    assert answer.verdict in (Verdict.UNWELCOME, Verdict.LATER)
    assert not answer.perhaps_taken


# Certificates


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate authority of our own, ca.pem, and what it signed: server.pem, client.pem, .key."""
    folder = tmp_path_factory.mktemp("certificates")
    openssl = shutil.which("openssl")
    assert openssl, "the tests of TLS need the program openssl"

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=Test authority",
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    for name in ("server", "client"):
        (folder / f"{name}.cnf").write_text(
            "subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        )
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", f"{name}.cnf", "-out", f"{name}.pem")  # fmt: skip
    return folder


@pytest.fixture
def secure(authority: Path) -> Iterator[OtlpSink]:
    """A receiver that speaks TLS and asks for a certificate."""
    with OtlpSink(tls=Tls(authority / "server.pem", authority / "server.key", authority / "ca.pem")) as sink:
        yield sink


@both
def test_certificates_of_both_sides_are_used(
    protocol: str, secure: OtlpSink, authority: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", str(authority / "ca.pem"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", str(authority / "client.pem"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(authority / "client.key"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority / "client.pem"))  # what was said of OTLP goes before
    way = build(**over(protocol, secure))
    for _ in range(2):
        answer = way.send(log_request("a"))
        assert answer.verdict is Verdict.DELIVERED, answer


@both
def test_a_certificate_of_an_unknown_authority_is_told(protocol: str, secure: OtlpSink, build: Build) -> None:
    answer = build(**over(protocol, secure)).send(log_request("a"), 5)
    assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, False), answer
    if protocol != "grpc":
        assert (answer.status, secure.logs) == ("SSLError", [])
        assert "certificate verify failed" in answer.reason


@both
def test_without_a_client_certificate_a_receiver_that_asks_for_one_takes_nothing(
    protocol: str, secure: OtlpSink, authority: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(authority / "ca.pem"))
    answer = build(**over(protocol, secure)).send(log_request("a"), 5)
    assert answer.verdict is Verdict.LATER
    assert secure.logs == []


@pytest.mark.parametrize("behaviour", [Hang(), Drip(0.02, where="headers")], ids=str)
def test_deadline_and_reconnection_hold_over_tls_too(
    behaviour: Behaviour, authority: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(authority / "ca.pem"))
    with OtlpSink(tls=Tls(authority / "server.pem", authority / "server.key")) as sink:
        way = build(sink.endpoint)
        assert way.send(log_request("a")).verdict is Verdict.DELIVERED
        sink.script.set(behaviour)
        began = time.monotonic()
        answer = way.send(log_request("b"), 0.5)
        assert time.monotonic() - began < 2.5
        assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, True)
        sink.script.set(Accept())
        sink.pause()
        sink.resume()
        assert way.send(log_request("c")).verdict is Verdict.DELIVERED


def test_a_handshake_that_never_ends_is_left(build: Build) -> None:
    with _Answers([], swallow=True) as server:
        began = time.monotonic()
        answer = build(server.endpoint.replace("http://", "https://")).send(log_request("a"), 0.5)
        assert time.monotonic() - began < 2.5
        assert (answer.reason, answer.perhaps_taken) == ("no connection within 0.5 s", False)


# Credential providers


PROVIDERS = """
import time
import requests, grpc
from pathlib import Path

def session():
    made = requests.Session()
    made.headers["x-token"] = "from the provider"
    made.auth = ("bob", "secret")
    return made

def credentials():
    return grpc.ssl_channel_credentials(Path("CA").read_bytes(), Path("KEY").read_bytes(), Path("CERT").read_bytes())

def wrong():
    return 7

def broken():
    raise OSError(5, "no metadata server")

def hangs():
    time.sleep(10)
"""


@pytest.fixture
def providers(tmp_path: Path, authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that offers credential providers."""
    source = PROVIDERS.replace('"CA"', repr(str(authority / "ca.pem")))
    source = source.replace('"KEY"', repr(str(authority / "client.key"))).replace(
        '"CERT"', repr(str(authority / "client.pem"))
    )
    (tmp_path / "kit_test_providers.py").write_text(source)
    info = tmp_path / "kit_test_providers-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kit-test-providers\nVersion: 1\n")
    names = ("session", "credentials", "wrong", "broken", "hangs")
    lines = "\n".join(f"{name} = kit_test_providers:{name}" for name in names)
    (info / "entry_points.txt").write_text(f"[opentelemetry_otlp_credential_provider]\n{lines}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import sys

    monkeypatch.delitem(sys.modules, "kit_test_providers", raising=False)


@pytest.mark.usefixtures("providers")
def test_a_credential_providers_session_is_used(sink: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "wrong")
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_LOGS_CREDENTIAL_PROVIDER", "session")
    way = build(sink.endpoint)
    assert way.send(log_request("a")).verdict is Verdict.DELIVERED
    headers = sink.script.arrivals[-1].headers
    assert headers["x-token"] == "from the provider"
    assert headers["authorization"] == requests.auth._basic_auth_str("bob", "secret")
    sink.script.set(Drip(0.02, where="headers"))
    began = time.monotonic()
    assert way.send(log_request("a"), 0.4).verdict is Verdict.LATER
    assert time.monotonic() - began < 2.5


@pytest.mark.usefixtures("providers")
def test_a_credential_providers_channel_credentials_are_used(
    secure: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_GRPC_CREDENTIAL_PROVIDER", "credentials")
    answer = build(**over("grpc", secure)).send(log_request("a"))
    assert answer.verdict is Verdict.DELIVERED, answer


@both
@pytest.mark.usefixtures("providers")
def test_a_credential_provider_that_fails_is_told_and_asked_again(
    protocol: str, secure: OtlpSink, build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kind = "GRPC" if protocol == "grpc" else "HTTP"
    monkeypatch.setenv(f"OTEL_PYTHON_EXPORTER_OTLP_{kind}_CREDENTIAL_PROVIDER", "broken")
    way = build(**over(protocol, secure))
    for _ in range(2):
        answer = way.send(log_request("a"), 2)
        assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, False)
        assert "no metadata server" in answer.reason
    monkeypatch.setenv(f"OTEL_PYTHON_EXPORTER_OTLP_{kind}_CREDENTIAL_PROVIDER", "hangs")
    began = time.monotonic()
    answer = build(**over(protocol, secure)).send(log_request("a"), 0.4)
    assert time.monotonic() - began < 2.5
    assert (answer.verdict, answer.perhaps_taken) == (Verdict.LATER, False)
    monkeypatch.setenv(f"OTEL_PYTHON_EXPORTER_OTLP_{kind}_CREDENTIAL_PROVIDER", "wrong")
    build(**over(protocol, secure)).send(log_request("a"), 2)
    assert "makes int; accepted: " in caplog.text


# Destinations


def test_a_destinations_fingerprint_knows_every_ingredient(
    authority: Path, monkeypatch: pytest.MonkeyPatch, providers: None
) -> None:
    def fingerprint(signal: Signal = "logs", **keywords: Any) -> str:
        return transport.destination(read(keywords, {}), signal).fingerprint

    plain = fingerprint()
    assert plain == fingerprint()
    assert len(plain) == 12
    assert int(plain, 16) >= 0
    seen = [plain, fingerprint("traces"), fingerprint("metrics"), fingerprint(endpoint="http://127.0.0.1:4319")]
    seen.append(fingerprint(endpoint="http://a:b@127.0.0.1:4318"))
    seen.append(fingerprint(protocol="grpc", endpoint="http://127.0.0.1:4318"))
    seen.append(fingerprint(protocol="grpc", endpoint="127.0.0.1:4318"))
    seen.append(fingerprint(headers={"a": "1", "b": "2"}))
    assert fingerprint(headers={"B": "2", "a": "1"}) == seen[-1]
    seen.append(fingerprint(headers={"a": "2", "b": "1"}))
    with monkeypatch.context() as patched:
        patched.setenv("OTEL_EXPORTER_OTLP_HEADERS", "b=2,a=1")
        assert fingerprint() == seen[-2]
    for name, value in [
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", authority / "ca.pem"),
        ("OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE", authority / "client.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", authority / "client.key"),
        ("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "session"),
        ("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "wrong"),
    ]:
        with monkeypatch.context() as patched:
            patched.setenv(name, str(value))
            seen.append(fingerprint())
    with monkeypatch.context() as patched:
        patched.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
        seen.append(fingerprint(protocol="grpc", endpoint="127.0.0.1:4318"))
    assert len(set(seen)) == len(seen)
    with monkeypatch.context() as patched:
        patched.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
        patched.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        assert fingerprint() == plain  # how fast and how small changes nothing about whose it is


def test_a_destination_is_shown_without_credentials() -> None:
    def shown(**keywords: Any) -> str:
        return transport.destination(read(keywords, {}), "logs").shown

    assert shown() == "http://127.0.0.1:4318/v1/logs"
    assert shown(protocol="grpc") == "http://127.0.0.1:4317"
    assert shown(endpoint="https://bob:pw@host:1/x/?key=1") == "https://host:1/x/?key=1/v1/logs".partition("?")[0]
    assert shown(endpoint="bob:pw@host:1", protocol="grpc") == "host:1"


# The receiver's script


def test_a_script_goes_by_signal_and_count_and_can_be_changed_while_it_runs(sink: OtlpSink, build: Build) -> None:
    logs, traces = build(sink.endpoint), build(sink.endpoint, "traces")

    def answers() -> tuple[str, str]:
        return logs.send(request_of("logs")).status, traces.send(request_of("traces")).status

    sink.script.set(Status(500), signal="logs")
    assert answers() == ("500", "200")
    sink.script.set(Status(503), times=1)
    sink.script.set(Status(429), signal="traces", times=1)
    assert answers() == ("503", "429")
    assert answers() == ("500", "200")
    sink.script.set(Status(401))
    assert answers() == ("401", "401")
    sink.script.set(Accept())
    assert answers() == ("200", "200")
    times = [arrival.at for arrival in sink.script.arrivals]
    assert times == sorted(times)
    assert sink.script.counts == {"refused": 6, "taken": 4}


def test_every_status_has_a_verdict() -> None:
    assert {http_verdict(status) for status in range(100, 600)} == set(Verdict)


def test_one_line_is_one() -> None:
    assert one_line("a\r\n\x1b[31mb\x00\tc ") == "a [31mb c"


class _Answers:
    """A server that answers the requests of one connection with given bytes, one after the other, and then ends it."""

    def __init__(self, answers: list[bytes], *, swallow: bool = False) -> None:
        self._answers = answers
        self._swallow = swallow
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = "http://{}:{}".format(*self._listener.getsockname())
        self.requests = 0
        self.first = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> _Answers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                while self._swallow and connection.recv(65536):
                    pass
                for answer in self._answers:
                    received = connection.recv(65536)
                    if not received:
                        break
                    self.requests += 1
                    self.first = self.first or received
                    head, _, body = received.partition(b"\r\n\r\n")
                    [length] = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
                    while len(body) < int(length.partition(b":")[2]):
                        body += connection.recv(65536)
                    connection.sendall(answer)


class _Relay:
    """Carries bytes to a port of 127.0.0.1, and can forget the connections it has, as a firewall does: without a word."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = "http://{}:{}".format(*self._listener.getsockname())
        self._open: list[socket.socket] = []
        self._carried = threading.Event()
        self._carried.set()

    def __enter__(self) -> _Relay:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._carried.clear()
        for end in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def forget(self) -> None:
        """Carry nothing more on the connections that stand; new ones are carried."""
        self._carried.clear()
        self._carried = threading.Event()
        self._carried.set()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(*pair, self._carried), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket, carried: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if carried.is_set():
                    target.sendall(data)
            if carried.is_set():
                target.shutdown(socket.SHUT_WR)
