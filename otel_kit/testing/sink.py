"""An OTLP receiver in the process: a real server on a real socket, whose contents can be looked at.

with OtlpSink() as sink:
    ...  # OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint
    sink.wait_for(lambda s: len(s.spans) == 3)

It takes everything, unless its ``script`` says otherwise: `otel_kit.testing.faults`.
"""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from otel_kit.testing import decode, misbehave
from otel_kit.testing.decode import LogRecord, MetricPoint, Span
from otel_kit.testing.faults import Script, Signal
from otel_kit.testing.misbehave import Exchange

_PATHS: Final[dict[str, tuple[Any, Any]]] = {
    "/v1/traces": (ExportTraceServiceRequest, ExportTraceServiceResponse),
    "/v1/metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
    "/v1/logs": (ExportLogsServiceRequest, ExportLogsServiceResponse),
}
_SERVICES: Final = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "/v1/traces",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "/v1/metrics",
    "opentelemetry.proto.collector.logs.v1.LogsService": "/v1/logs",
}
_ITEMS: Final[dict[Signal, Callable[[Any], Any]]] = {
    "traces": decode.spans,
    "metrics": decode.points,
    "logs": decode.logs,
}
_LARGEST_BODY: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates of a receiver that speaks TLS, files in PEM.

    Attributes:
        certificate: Its own, and those between it and the authority.
        key: The key to it.
        clients: The authority that its clients' certificates must come from; None asks for none.
    """

    certificate: Path
    key: Path
    clients: Path | None = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], tls: Tls | None) -> None:
        super().__init__(address, handler)
        self._tls = None
        if tls is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(tls.certificate, tls.key)
            if tls.clients is not None:
                self._tls.load_verify_locations(tls.clients)
                self._tls.verify_mode = ssl.CERT_REQUIRED
        self._open: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls is not None:
            # The handshake is the connection's own thread's: it must not hold up the others.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def end(self) -> None:
        """Stop, and end the connections that stand."""
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # ended meanwhile
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: a client that is killed before it has its answer is part of many a test."""


class OtlpSink:
    """Receives OTLP over HTTP and, where grpcio is installed, over gRPC, on free ports of 127.0.0.1.

    Args:
        port: The HTTP port; 0 takes a free one.
        tls: Certificates, for TLS on both ports.

    Attributes:
        script: What it does with each request, and when each came.
    """

    def __init__(self, port: int = 0, tls: Tls | None = None) -> None:
        self.script = Script()
        self._arrived = threading.Condition()
        self._spans: list[Span] = []
        self._logs: list[LogRecord] = []
        self._points: list[MetricPoint] = []
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30.0

            def do_POST(self) -> None:
                sink._answer(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Silent: the sink's own requests are of no interest."""

        self._handler = Handler
        self._tls = tls
        self._stopped = threading.Event()
        self._scheme = "http" if tls is None else "https"
        self._server = _Server(("127.0.0.1", port), Handler, tls)
        self._port = self._server.server_address[1]
        self._grpc: Any = None
        self._grpc_port = 0
        #: Base URL for OTLP over HTTP.
        self.endpoint = f"{self._scheme}://127.0.0.1:{self._port}"
        #: URL for OTLP over gRPC, None without grpcio.
        self.grpc_endpoint: str | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen."""
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="otlp-sink", daemon=True
        ).start()
        self._start_grpc()

    def stop(self) -> None:
        """Stop listening, close the port and end the connections; what has arrived stays readable."""
        self._stopped.set()
        self._server.end()
        if self._grpc is not None:
            self._grpc.stop(grace=0).wait()

    def pause(self) -> None:
        """Be away: connections are refused, those that stand are ended. `resume` brings it back on the same ports."""
        self.stop()

    def resume(self) -> None:
        """Listen again, on the same ports."""
        self._stopped = threading.Event()
        self._server = _Server(("127.0.0.1", self._port), self._handler, self._tls)
        self.start()

    @property
    def spans(self) -> list[Span]:
        """What has arrived so far, a copy."""
        with self._arrived:
            return list(self._spans)

    @property
    def logs(self) -> list[LogRecord]:
        """What has arrived so far, a copy."""
        with self._arrived:
            return list(self._logs)

    @property
    def points(self) -> list[MetricPoint]:
        """Every point that has arrived so far, a copy; a series has one for each export."""
        with self._arrived:
            return list(self._points)

    def clear(self) -> None:
        """Forget what has arrived."""
        with self._arrived:
            self._spans.clear()
            self._logs.clear()
            self._points.clear()

    def wait_for(self, condition: Callable[[OtlpSink], object], timeout: float = 10.0) -> None:
        """Wait until ``condition(sink)`` is true; it is asked whenever something arrives.

        Raises:
            TimeoutError: It was not within ``timeout`` seconds; the message tells what has arrived instead.
        """
        deadline = time.monotonic() + timeout
        while not condition(self):
            with self._arrived:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._arrived.wait(min(remaining, 0.5))
        else:
            return
        if not condition(self):
            raise TimeoutError(f"not within {timeout} s; arrived: {self.summary()}")

    def summary(self) -> str:
        """What has arrived, in one line."""
        spans = Counter(f"{span.service}: {span.name}" for span in self.spans)
        logs = Counter(f"{record.service}: {record.severity}" for record in self.logs)
        metrics = Counter(f"{point.service}: {point.name}" for point in self.points)
        return f"spans {dict(spans)}, logs {dict(logs)}, metrics {dict(metrics)}"

    def _take(self, message: Any) -> None:
        with self._arrived:
            if isinstance(message, ExportTraceServiceRequest):
                self._spans.extend(decode.spans(message))
            elif isinstance(message, ExportMetricsServiceRequest):
                self._points.extend(decode.points(message))
            else:
                self._logs.extend(decode.logs(message))
            self._arrived.notify_all()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        if handler.path not in _PATHS or length > _LARGEST_BODY:
            handler.send_error(404 if handler.path not in _PATHS else 413)
            return

        def read() -> Any:
            body = handler.rfile.read(length)
            encoding = handler.headers.get("Content-Encoding", "")
            if encoding == "gzip":
                body = gzip.decompress(body)
            elif encoding == "deflate":
                body = zlib.decompress(body)
            return _PATHS[handler.path][0].FromString(body)

        exchange = self._exchange(handler.path, read)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        peer = "{}:{}".format(*handler.client_address[:2])
        misbehave.over_http(self.script.arrived(exchange.signal, "http", headers, peer), exchange, handler)

    def _exchange(self, path: str, read: Callable[[], Any]) -> Exchange:
        signal = cast("Signal", path.removeprefix("/v1/"))
        return Exchange(signal, self.script, read, self._take, _ITEMS[signal], _PATHS[path][1], self._stopped)

    def _start_grpc(self) -> None:
        try:
            import grpc
        except ImportError:
            return
        # More than a few: one that hangs holds a thread.
        self._grpc = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=[("grpc.so_reuseport", 0)])
        for service, path in _SERVICES.items():
            request, response = _PATHS[path]

            def export(message: Any, context: Any, path: str = path) -> Any:
                exchange = self._exchange(path, lambda: message)
                headers = dict(context.invocation_metadata())
                return misbehave.over_grpc(
                    self.script.arrived(exchange.signal, "grpc", headers, context.peer()), exchange, context
                )

            handler = grpc.unary_unary_rpc_method_handler(
                export, request_deserializer=request.FromString, response_serializer=response.SerializeToString
            )
            self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        address = f"127.0.0.1:{self._grpc_port}"
        if self._tls is None:
            self._grpc_port = self._grpc.add_insecure_port(address)
        else:
            clients = self._tls.clients
            pair = (self._tls.key.read_bytes(), self._tls.certificate.read_bytes())
            credentials = grpc.ssl_server_credentials(
                [pair], clients.read_bytes() if clients else None, require_client_auth=clients is not None
            )
            self._grpc_port = self._grpc.add_secure_port(address, credentials)
        self._grpc.start()
        self.grpc_endpoint = f"{self._scheme}://127.0.0.1:{self._grpc_port}"
