"""One attempt at one OTLP request, over HTTP or gRPC: what is sent where, and what the receiver made of it.

Nothing here retries, queues or keeps: that is the business of who calls. Which variables are honoured stands in
`otel_kit.telemetry.transport.options`, how an answer is judged in `otel_kit.telemetry.transport.verdicts`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from otel_kit.settings import Settings
from otel_kit.telemetry.payload import Answer, Signal
from otel_kit.telemetry.transport.options import Options, resolve, shown

__all__ = ["Destination", "Options", "Transport", "build", "destination"]

_logger = logging.getLogger(__name__)
# What was said already: a common variable is read once for every signal, and one line about it is enough.
_said: set[str] = set()


class Transport(Protocol):
    """One way to one receiver."""

    def send(self, body: bytes, timeout: float | None = None) -> Answer:
        """Make one attempt. Never raises, never retries.

        Args:
            body: The serialised ``Export...ServiceRequest``, not compressed.
            timeout: At most this many seconds in all, from the name's resolution to the answer's last byte; the signal's
                OTEL_EXPORTER_OTLP_TIMEOUT (10 s where it is not set) where that is less.
        """
        ...

    def renew(self) -> None:
        """Go on with new connections, threads and locks; an attempt under way on an old one comes to its end."""
        ...

    def close(self) -> None:
        """Give up the connection; an attempt under way on another thread ends at once with ``LATER``. Callable twice."""
        ...


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a signal goes.

    Attributes:
        shown: The URL for messages, without credentials.
        fingerprint: 12 hexadecimal digits over everything that must be the same before a payload that was kept for this
            destination may be sent: signal, protocol, endpoint, headers in any order, certificates, credential provider.
    """

    shown: str
    fingerprint: str


def build(settings: Settings, signal: Signal) -> Transport | None:
    """The way to a signal's receiver, None where the library for it cannot be imported. Opens no connection.

    A variable whose value is not accepted is named in one line of the log, and its default is used.
    """
    options = resolve(settings, signal)
    for complaint in options.complaints:
        if complaint not in _said:
            _said.add(complaint)
            _logger.error("otel-kit: %s", complaint)
    try:
        if options.protocol == "grpc":
            from otel_kit.telemetry.transport.grpc import GrpcTransport

            return GrpcTransport(options)
        from otel_kit.telemetry.transport.http import HttpTransport

        return HttpTransport(options)
    except ImportError as error:
        _logger.error(
            "otel-kit: OTLP over %s is not possible, a library is missing: %s. No %s are sent",
            options.protocol, error, signal,
        )  # fmt: skip
        return None


def destination(settings: Settings, signal: Signal) -> Destination:
    """Where `build` would send a signal. Logs nothing, opens nothing."""
    options = resolve(settings, signal)
    return Destination(shown(options.endpoint), options.fingerprint())
