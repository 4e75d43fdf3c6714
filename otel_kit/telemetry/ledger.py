"""What became of every item: delivered, given up and why, sent again. Nothing is dropped without a number here."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from otel_kit import catalogue
from otel_kit.telemetry.payload import SIGNALS, Cause, Signal

_logger = logging.getLogger(__name__)
_Observations = Iterable[tuple[float, dict[str, str]]]

#: Seconds between two lines about the same loss.
_QUIET: Final = 60.0
_NAMES: Final[dict[Signal, str]] = {"traces": "spans", "metrics": "data points", "logs": "log records"}
_EXPLANATIONS: Final[dict[Cause, str]] = {
    Cause.QUEUE_FULL: "they were made faster than they could be packed",
    Cause.UNENCODABLE: "they cannot be written as OTLP",
    Cause.TOO_LARGE: "each alone is larger than a receiver takes",
    Cause.REFUSED: "the receiver refused them",
    Cause.SPOOL_FULL: "what is kept for later had grown to its limit",
    Cause.EXPIRED: "they had been kept for longer than the backends take late data",
    Cause.CORRUPT: "their file could not be read and was set aside",
    Cause.EXIT: "the process ended and there was no place to keep them",
}


class Ledger:
    """Counts per signal and cause. Counting never waits and never logs: our own threads `speak`.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """A child has lost nothing yet; a lock that was held at fork would stay held."""
        # Reentrant: a finalizer or a signal handler that logs may come in while its own thread counts.
        self._lock = threading.RLock()
        # At zero from the start: an observed counter has no zero of its own, and the first loss would be no increase.
        self._dropped: Counter[tuple[Signal, Cause]] = Counter(
            {(signal, cause): 0 for signal in SIGNALS for cause in Cause}
        )
        self._delivered: Counter[Signal] = Counter(dict.fromkeys(SIGNALS, 0))
        self._replayed: Counter[Signal] = Counter(dict.fromkeys(SIGNALS, 0))
        self._resent: Counter[Signal] = Counter(dict.fromkeys(SIGNALS, 0))
        self._said: dict[tuple[Signal, Cause], tuple[float, int]] = {}
        self._reasons: dict[tuple[Signal, Cause], str] = {}

    def dropped(self, signal: Signal, cause: Cause, items: int, reason: str = "") -> None:
        """``items`` were given up."""
        if items > 0:
            with self._lock:
                self._dropped[signal, cause] += items
                if reason:
                    self._reasons[signal, cause] = reason

    def delivered(self, signal: Signal, items: int) -> None:
        """``items`` were taken by the receiver."""
        with self._lock:
            self._delivered[signal] += items

    def replayed(self, signal: Signal, items: int) -> None:
        """``items`` that had been kept were delivered after all."""
        with self._lock:
            self._replayed[signal] += items

    def resent(self, signal: Signal, items: int) -> None:
        """``items`` will be sent once more although the receiver may have them: their request had left in full."""
        with self._lock:
            self._resent[signal] += items

    def speak(self) -> None:
        """Say what was lost: one line for each cause, a minute apart at least."""
        now = self._clock()
        due = []
        with self._lock:
            for key, total in self._dropped.items():
                said_at, said = self._said.get(key, (-_QUIET, 0))
                if total > said and now - said_at >= _QUIET:
                    self._said[key] = (now, total)
                    due.append((key, total - said, self._reasons.get(key, "")))
        for (signal, cause), number, reason in due:
            _logger.disabled = False  # dictConfig switches off every logger that it does not name
            _logger.warning(
                "otel-kit: %d %s dropped (%s): %s%s",
                number, _NAMES[signal], cause.value, _EXPLANATIONS[cause], f": {reason}" if reason else "",
            )  # fmt: skip

    def observe_dropped(self) -> _Observations:
        """Totals by signal and cause."""
        with self._lock:
            counted = list(self._dropped.items())
        return [
            (float(number), {catalogue.SIGNAL: signal, catalogue.CAUSE: cause.value})
            for (signal, cause), number in counted
        ]

    def observe_delivered(self) -> _Observations:
        """Totals by signal."""
        return self._by_signal(self._delivered)

    def observe_replayed(self) -> _Observations:
        """Totals by signal."""
        return self._by_signal(self._replayed)

    def observe_resent(self) -> _Observations:
        """Totals by signal."""
        return self._by_signal(self._resent)

    def _by_signal(self, counter: Counter[Signal]) -> _Observations:
        with self._lock:
            return [(float(number), {catalogue.SIGNAL: signal}) for signal, number in counter.items()]
