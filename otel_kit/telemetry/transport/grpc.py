"""OTLP over gRPC: one attempt on a channel of this process, and an answer that tells what happened.

The channel keeps its own connection and deadline, names' resolution included. Three things are set otherwise than gRPC has
them by default. It does not share its connection with other channels of the process, so that closing it closes it. It tries
to connect again within a second of a failure and not within two minutes: how long to wait is the caller's decision, and an
attempt that fails because an earlier one did is none. And after a deadline has passed the next attempt gets a new channel:
a connection that a firewall has forgotten would otherwise swallow every request until TCP gives it up.

gRPC sends a request again by itself only where it knows that the receiver has not seen it; that stays on.

``perhaps_taken``: gRPC does not tell when a request has left. A failure to resolve or to connect, and a deadline that passed
while the channel was not connected, are known not to have sent it; a status that the receiver sent is an answer; a
connection that broke, a deadline that passed on a standing connection, and a cancellation count as perhaps taken.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from pathlib import Path
from typing import Any, Final

import grpc
import grpc._channel  # else imported with the first channel, and a child forked meanwhile would wait for that import for ever
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit.telemetry.context import silenced
from otel_kit.telemetry.payload import Answer, Signal, Verdict
from otel_kit.telemetry.transport import verdicts
from otel_kit.telemetry.transport.hands import Hands
from otel_kit.telemetry.transport.options import Options, split, user_agent

_logger = logging.getLogger(__name__)

_METHODS: Final[dict[Signal, str]] = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
_COMPRESSIONS: Final = {"none": grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip}
_CHANNEL: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
# What gRPC's core says where no connection stood, and where one broke under a request. Anything else is the receiver's.
_NOT_CONNECTED: Final = re.compile(
    r"failed to connect|errors resolving|dns resolution|name resolution|connections to all backends failing"
    r"|no connection established|empty address list|handshake",
    re.IGNORECASE,
)
_BROKEN: Final = re.compile(
    r"socket closed|stream removed|connection reset|broken pipe|recvmsg|goaway|cancelling all calls|keepalive"
    r"|transport closed|endpoint clos|rst_stream",
    re.IGNORECASE,
)
# "... last error: UNKNOWN: ipv4:127.0.0.1:4317: Failed to connect to remote host: Connection refused"
_LAST_ERROR: Final = re.compile(r"last error: (?:[A-Z_]+: )?(.+)$", re.DOTALL)
# grpc.ChannelConnectivity has it second: idle, connecting, ready, transient failure, shutdown.
_CONNECTING: Final = 1
_TRANSIENT_FAILURE: Final = 3


class _Process:
    """What belongs to one process: a channel does not survive a fork."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.channel: Any = None
        self.export: Any = None
        #: Attempts on the channel now.
        self.under_way = 0
        self.hands = Hands()


class GrpcTransport:
    """One signal's way over gRPC.

    Args:
        options: What is in force for the signal.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._secrets = options.secrets()
        self._target = split(options.endpoint).netloc.rpartition("@")[2]
        self._metadata = tuple((name, value) for name, value in options.headers.items() if name != "user-agent")
        self._user_agent = options.headers.get("user-agent", user_agent())
        self._process = _Process()
        # The parent's, in a forked child: kept, since freeing a channel shuts its connection down.
        self._inherited: list[_Process] = []
        self._closed = False
        self._provider_refused = False

    def send(self, body: bytes, timeout: float | None = None) -> Answer:
        """Make one attempt; see `otel_kit.telemetry.transport.Transport`."""
        limit = self._options.timeout if timeout is None else min(timeout, self._options.timeout)
        deadline = time.monotonic() + limit
        if limit <= 0:
            return Answer(Verdict.LATER, "no time was left for an attempt", "DEADLINE_EXCEEDED")
        process = self._here()
        if process.hands.stuck:
            return Answer(Verdict.LATER, "earlier attempts still wait for the credential provider", "TimeoutError")
        try:
            with suppress_instrumentation(), silenced():
                export = self._begin(process, deadline)
                if export is None:
                    return Answer(Verdict.LATER, "the transport is closed", "Closed")
                renew = False
                try:
                    response, _call = export.with_call(
                        body, timeout=max(deadline - time.monotonic(), 0.001), metadata=self._metadata
                    )
                    return verdicts.of_grpc_response(self._options.signal, response, self._secrets)
                except grpc.RpcError as error:
                    renew = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                    return self._failed(error, process, limit)
                finally:
                    self._end(process, renew=renew)
        except Exception as error:  # noqa: BLE001  # an application must not fail for its telemetry
            reason = verdicts.one_line(f"{type(error).__name__}: {error}", self._secrets)
            return Answer(Verdict.LATER, reason, "Closed" if self._closed else type(error).__name__)

    def renew(self) -> None:
        """Go on with a new connection; see `otel_kit.telemetry.transport.Transport`."""
        self._inherited.append(self._process)
        self._process = _Process()

    def close(self) -> None:
        """Give up the connection; see `otel_kit.telemetry.transport.Transport`."""
        self._closed = True
        process = self._process
        if process.pid != os.getpid():
            return
        process.hands.close()
        # Not under the lock: a signal handler may close what its own thread is about to use.
        channel, process.channel, process.export = process.channel, None, None
        if channel is not None:
            channel.close()

    def _here(self) -> _Process:
        process = self._process
        if process.pid != os.getpid():
            self._inherited.append(process)
            process = self._process = _Process()
        return process

    def _begin(self, process: _Process, deadline: float) -> Any:
        """The method to call, None once closed.

        Raises:
            TimeoutError: The credential provider did not answer in time.
            Exception: What it raised.
        """
        if process.channel is None:
            failures: list[Exception] = []

            def work() -> None:
                try:
                    self._open(process)
                except Exception as error:  # noqa: BLE001  # foreign code may raise anything
                    failures.append(error)

            # gRPC itself connects later and keeps the deadline; a provider may ask a server of its own.
            over = threading.Event()
            if not self._options.provider or not process.hands.start(work, over):
                work()
            elif not over.wait(max(deadline - time.monotonic(), 0.0)):
                raise TimeoutError(f"the credential provider {self._options.provider!r} does not answer")
            if failures:
                raise failures[0]
        with process.lock:
            if self._closed or process.channel is None:
                return None
            process.under_way += 1
            return process.export

    def _open(self, process: _Process) -> None:
        channel = self._new_channel()
        with process.lock:
            if process.channel is None and not self._closed:
                process.channel = channel
                process.export = channel.unary_unary(
                    _METHODS[self._options.signal],
                    request_serializer=None,
                    response_deserializer=None,
                )
                return
        channel.close()

    def _end(self, process: _Process, *, renew: bool) -> None:
        channel = None
        with process.lock:
            process.under_way -= 1
            if renew and not process.under_way:
                channel, process.channel, process.export = process.channel, None, None
        if channel is not None:
            channel.close()

    def _new_channel(self) -> Any:
        options = [*_CHANNEL, ("grpc.primary_user_agent", self._user_agent)]
        compression = _COMPRESSIONS[self._options.compression]
        if self._options.insecure:
            return grpc.insecure_channel(self._target, options=options, compression=compression)
        return grpc.secure_channel(self._target, self._credentials(), options=options, compression=compression)

    def _credentials(self) -> grpc.ChannelCredentials:
        provider = self._options.load_provider()
        if provider is not None:
            credentials = provider()
            if isinstance(credentials, grpc.ChannelCredentials):
                return credentials
            if not self._provider_refused:
                self._provider_refused = True
                _logger.error(
                    "otel-kit: the credential provider %r makes %s; accepted: grpc.ChannelCredentials. Going on without it",
                    self._options.provider, type(credentials).__name__,
                )  # fmt: skip
        # A key without its certificate is nothing, and gRPC refuses it.
        certificate = _read(self._options.client_certificate)
        key = _read(self._options.client_key) or certificate
        return grpc.ssl_channel_credentials(_read(self._options.certificate), key if certificate else None, certificate)

    def _failed(self, error: Any, process: _Process, limit: float) -> Answer:
        code = error.code().name
        details = str(error.details() or "")
        if self._closed and code == "CANCELLED":
            return Answer(Verdict.LATER, "closed before an answer came", "Closed", perhaps_taken=True)
        if code == "DEADLINE_EXCEEDED" and details == "Deadline Exceeded":
            connected = _state(process.channel) not in (_CONNECTING, _TRANSIENT_FAILURE)
            what = "answer" if connected else "connection"
            return Answer(Verdict.LATER, f"no {what} within {limit:g} s", code, perhaps_taken=connected)
        broken = False
        if code == "UNAVAILABLE" and _NOT_CONNECTED.search(details):
            last = _LAST_ERROR.search(details)
            details = last[1] if last else details
        elif code == "UNAVAILABLE" and _BROKEN.search(details):
            broken = True
            details = f"the connection broke before an answer came: {details}"
        return verdicts.of_grpc(code, details, error.trailing_metadata() or (), self._secrets, perhaps_taken=broken)


def _state(channel: Any) -> int | None:
    """Where the channel's connection is; the public way to ask starts a thread and polls."""
    try:
        state: int = channel._channel.check_connectivity_state(False)  # noqa: SLF001
    except (AttributeError, ValueError):  # another grpcio, or closed meanwhile
        return None
    return state


def _read(path: str) -> bytes | None:
    return Path(path).read_bytes() if path else None
