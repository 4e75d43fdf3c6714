"""Carries out, over HTTP and gRPC, what `otel_kit.testing.faults` describes."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status as RpcStatus  # type: ignore[import-untyped]

from otel_kit.testing.faults import (
    Behaviour,
    CutReading,
    CutTaken,
    Drip,
    Hang,
    Partial,
    RejectIf,
    Script,
    Signal,
    Slow,
    Status,
)

_REJECTED: Final = {"traces": "rejected_spans", "metrics": "rejected_data_points", "logs": "rejected_log_records"}
# As the collector's receiver translates them.
_CODES: Final = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED", 413: "RESOURCE_EXHAUSTED", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL",
    501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "UNAVAILABLE",
}  # fmt: skip
_CUT: Final = "Connection reset by the receiver"
# The status line, or a header, or the body, is what follows.
_BEGINNINGS: Final = {
    "status": b"HTTP/1.1 200 O",
    "headers": b"HTTP/1.1 200 OK\r\nX-Endless: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 1000000\r\n"
    b"Connection: close\r\n\r\n",
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request as the receiver sees it.

    Attributes:
        read: Reads and parses it; raises for what is no OTLP.
        take: Keeps it.
        items: The items in it.
        response: The type of the response.
        stopped: Set when the receiver stops; nothing waits longer.
    """

    signal: Signal
    script: Script
    read: Callable[[], Any]
    take: Callable[[Any], None]
    items: Callable[[Any], Iterable[Any]]
    response: Any
    stopped: threading.Event


def over_http(behaviour: Behaviour, exchange: Exchange, handler: BaseHTTPRequestHandler) -> None:
    """Do it on an HTTP request whose headers have been read."""
    script, stopped = exchange.script, exchange.stopped
    if isinstance(behaviour, Hang) and not behaviour.reading:
        script.count("hung")
        stopped.wait()
        return _cut(handler)
    if isinstance(behaviour, CutReading):
        handler.rfile.read(behaviour.after)
        script.count("cut")
        return _cut(handler, reset=True)
    try:
        message = exchange.read()
    except Exception as error:  # noqa: BLE001
        handler.send_error(400, f"not an OTLP {exchange.signal} message: {error}")
        return None
    behaviour = _judged(behaviour, exchange, message)
    if isinstance(behaviour, Status):
        script.count("refused")
        body = behaviour.body
        if body is None:
            body = RpcStatus(message=behaviour.message).SerializeToString() if behaviour.message else b""
        headers = dict(behaviour.headers)
        if behaviour.retry_after is not None:
            headers["Retry-After"] = str(behaviour.retry_after)
        return _respond(handler, behaviour.status, behaviour.kind, body, headers)
    if isinstance(behaviour, Hang):
        script.count("hung")
        stopped.wait()
        return _cut(handler)
    exchange.take(message)
    if isinstance(behaviour, CutTaken):
        script.count("cut")
        return _cut(handler)
    if isinstance(behaviour, Drip):
        script.count("dripped")
        return _drip(behaviour, handler, stopped)
    script.count("taken")
    if isinstance(behaviour, Slow):
        stopped.wait(behaviour.seconds)
    return _respond(handler, 200, "application/x-protobuf", _response(behaviour, exchange).SerializeToString(), {})


def over_grpc(behaviour: Behaviour, exchange: Exchange, context: Any) -> Any:
    """Do it on a gRPC request, and return the response."""
    script, stopped = exchange.script, exchange.stopped
    message = exchange.read()
    behaviour = _judged(behaviour, exchange, message)
    if isinstance(behaviour, Status):
        script.count("refused")
        _abort(context, behaviour)
    if isinstance(behaviour, CutReading):
        script.count("cut")
        _abort(context, Status(503, message=_CUT))
    if isinstance(behaviour, Hang):
        return _hang(context, exchange)
    exchange.take(message)
    if isinstance(behaviour, Drip):
        return _hang(context, exchange)
    if isinstance(behaviour, CutTaken):
        script.count("cut")
        _abort(context, Status(503, message=_CUT))
    script.count("taken")
    if isinstance(behaviour, Slow):
        stopped.wait(behaviour.seconds)
    return _response(behaviour, exchange)


def _judged(behaviour: Behaviour, exchange: Exchange, message: Any) -> Behaviour:
    """A refusal in place of a condition that is met."""
    if isinstance(behaviour, RejectIf) and any(behaviour.condition(item) for item in exchange.items(message)):
        return Status(400, message=behaviour.message)
    return behaviour


def _response(behaviour: Behaviour, exchange: Exchange) -> Any:
    response = exchange.response()
    if isinstance(behaviour, Partial):
        setattr(response.partial_success, _REJECTED[exchange.signal], behaviour.rejected)
        response.partial_success.error_message = behaviour.message
    return response


def _respond(handler: BaseHTTPRequestHandler, status: int, kind: str, body: bytes, headers: dict[str, str]) -> None:
    handler.send_response(status)
    if body or status == 200:
        handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def _cut(handler: BaseHTTPRequestHandler, *, reset: bool = False) -> None:
    """End the connection: with a FIN, or, where bytes are unread or a reset is meant, with an RST."""
    handler.close_connection = True
    if reset:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The server would shut it down first, which sends a FIN.
        handler.rfile.close()
        handler.wfile.close()
        handler.connection.close()


def _drip(behaviour: Drip, handler: BaseHTTPRequestHandler, stopped: threading.Event) -> None:
    handler.close_connection = True
    handler.wfile.write(_BEGINNINGS[behaviour.where])
    while not stopped.wait(behaviour.interval):
        handler.wfile.write(b"x")


def _hang(context: Any, exchange: Exchange) -> Any:
    """Until the other side has enough, or the receiver stops, which ends the call."""
    exchange.script.count("hung")
    over = threading.Event()
    if context.add_callback(over.set):
        over.wait()
    return exchange.response()


def _abort(context: Any, answer: Status) -> None:
    """Raises: gRPC's way to end a call with a status."""
    import grpc

    code = grpc.StatusCode[answer.code or _CODES.get(answer.status, "UNKNOWN")]
    message = answer.message
    if answer.status == 413:
        message = f"grpc: received message larger than max: {message}"
    if isinstance(answer.retry_after, (int, float)):
        delay = Duration()
        delay.FromNanoseconds(int(answer.retry_after * 1e9))
        detail = AnyMessage()
        detail.Pack(RetryInfo(retry_delay=delay))
        status = RpcStatus(code=code.value[0], message=message, details=[detail])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)
