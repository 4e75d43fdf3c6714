"""Says once that telemetry does not get through, and once that all of it does again."""

from __future__ import annotations

import logging
import threading
import time

_logger = logging.getLogger(__name__)


class Outage:
    """One per process, for all signals: a collector that is down is one fact and gets one line.

    Args:
        destination: Where telemetry goes, for the message.
        kept: Where it stays meanwhile, for the message.
    """

    def __init__(self, destination: str, kept: str) -> None:
        self._destination = destination
        self._kept = kept
        self._lock = threading.Lock()
        # By signal: a receiver may take the one and refuse the other for ever.
        self._failing: set[str] = set()
        self._since = 0.0

    def report(self, signal: str, *, delivered: bool, reason: str = "") -> None:
        """Note the end of one attempt to send a signal's telemetry."""
        with self._lock:
            before = bool(self._failing)
            if delivered:
                self._failing.discard(signal)
            else:
                self._failing.add(signal)
            after = bool(self._failing)
            if before == after:
                return
            lasted = time.monotonic() - self._since
            self._since = time.monotonic()
        # dictConfig switches off every logger that it does not name; this one has something to say.
        _logger.disabled = False
        if after:
            _logger.warning(
                "otel-kit: %s do not reach %s (%s); the application goes on, telemetry %s; this is said once per outage",
                signal, self._destination, reason or "no answer", self._kept,
            )  # fmt: skip
        else:
            _logger.warning("otel-kit: telemetry reaches %s again after %.0f s", self._destination, lasted)

    def reset_after_fork(self) -> None:
        """A lock that was held at fork would stay held."""
        self._lock = threading.Lock()
