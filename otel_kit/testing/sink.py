"""An OTLP receiver in the process: a real server on a real socket, whose contents can be looked at.

with OtlpSink() as sink:
    ...  # OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint
    sink.wait_for(lambda s: len(s.spans) == 3)
"""

from __future__ import annotations

import gzip
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from otel_kit.testing import decode
from otel_kit.testing.decode import LogRecord, MetricPoint, Span

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
_LARGEST_BODY: Final = 64 * 1024 * 1024


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: a client that is killed before it has its answer is part of many a test."""


class OtlpSink:
    """Receives OTLP over HTTP and, where grpcio is installed, over gRPC, on free ports of 127.0.0.1.

    Args:
        port: The HTTP port; 0 takes a free one.
    """

    def __init__(self, port: int = 0) -> None:
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

        self._server = _Server(("127.0.0.1", port), Handler)
        self._grpc: Any = None
        #: Base URL for OTLP over HTTP.
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
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
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self._start_grpc()

    def stop(self) -> None:
        """Stop listening and close the port; what has arrived stays readable."""
        self._server.shutdown()
        self._server.server_close()
        if self._grpc is not None:
            self._grpc.stop(grace=0).wait()

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
        body = handler.rfile.read(length)
        encoding = handler.headers.get("Content-Encoding", "")
        if encoding == "gzip":
            body = gzip.decompress(body)
        elif encoding == "deflate":
            body = zlib.decompress(body)
        request, response = _PATHS[handler.path]
        try:
            self._take(request.FromString(body))
        except Exception as error:  # noqa: BLE001
            handler.send_error(400, f"not an OTLP {handler.path} message: {error}")
            return
        answer = response().SerializeToString()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/x-protobuf")
        handler.send_header("Content-Length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer)

    def _start_grpc(self) -> None:
        try:
            import grpc
        except ImportError:
            return
        self._grpc = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        for service, path in _SERVICES.items():
            request, response = _PATHS[path]

            def export(message: Any, _context: Any, answer: Any = response) -> Any:
                self._take(message)
                return answer()

            handler = grpc.unary_unary_rpc_method_handler(
                export, request_deserializer=request.FromString, response_serializer=response.SerializeToString
            )
            self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()
        self.grpc_endpoint = f"http://127.0.0.1:{port}"
