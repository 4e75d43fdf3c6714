"""How many jobs wait, and for how long: read at intervals, by one reporter for each queue."""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Final, Protocol

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit import catalogue
from otel_kit.guard import guard
from otel_kit.telemetry.apart import Values, apart
from otel_kit.telemetry.context import silenced

_logger = logging.getLogger(__name__)

#: `service.name` of all queues.
SERVICE: Final = "queues"
#: Intervals for which a lease is held: a reporter that dies is replaced after as many.
_LEASE_INTERVALS: Final = 2.5


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue as it is now.

    Attributes:
        ready: Jobs that could start.
        scheduled: Those that are to start later.
        reserved: Those that a worker has taken and not finished.
        dead: Those that were given up and are kept for somebody to look at.
        oldest_ready_at: Since when the oldest ready one has been ready (unix seconds); None where none is, or it cannot be told.
    """

    ready: int
    scheduled: int = 0
    reserved: int = 0
    dead: int = 0
    oldest_ready_at: float | None = None


class QueueSource(Protocol):
    """Where a queue's state comes from. It is asked on a thread of ours, and changes nothing."""

    @property
    def system(self) -> str:
        """The broker."""
        ...

    @property
    def name(self) -> str:
        """The queue's name."""
        ...

    def read(self) -> QueueState:
        """Look, in one round trip whose cost does not grow with the queue; it makes no spans. May raise."""
        ...


class ReporterLease(Protocol):
    """Sees to it that one process at a time reports a queue."""

    def hold(self, key: str, token: str, ttl: float) -> bool:
        """Take or keep what ``key`` names for ``ttl`` seconds, in the name of ``token``; whether that worked. May raise."""
        ...


@dataclass(slots=True)
class _Watched:
    source: QueueSource
    lease: ReporterLease | None
    down: bool = False
    latest: QueueState | None = None


class QueueReporter:
    """One thread that reads every watched queue at an interval and exports what it finds under the queue's own identity."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._watched: dict[tuple[str, str], _Watched] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._token = secrets.token_hex(8)
        #: Seconds between two readings.
        self.interval = 10.0
        #: Whether queues are read at all, and whether by one process at a time.
        self.enabled = True
        self.leased = True

    def configure(self, interval: float, mode: str) -> None:
        """Read every ``interval`` seconds; ``mode`` is ``lease``, ``always`` (whoever else does) or ``off``."""
        self.interval, self.enabled, self.leased = interval, mode != "off", mode != "always"

    def reset_after_fork(self) -> None:
        """A child reports nothing until it is asked to."""
        self._lock = threading.RLock()
        self._watched.clear()
        self._thread = None
        self._stop = threading.Event()
        self._token = secrets.token_hex(8)

    def renew(self) -> None:
        """Go on with a thread of the kind that `threading` offers now."""
        with self._lock:
            self._stop.set()
            self._stop, self._lock = threading.Event(), threading.RLock()
            running, self._thread = self._thread is not None, None
        if running:
            self._start()

    def watch(self, source: QueueSource, lease: ReporterLease | None) -> None:
        """Report this queue from now on; a queue that is watched already goes on with the new source."""
        if not self.enabled:
            return
        with self._lock:
            self._watched[source.system, source.name] = _Watched(source, lease)
        self._start()

    def watched(self) -> list[tuple[QueueSource, QueueState | None]]:
        """The queues and what was last found, by this process."""
        with self._lock:
            return [(each.source, each.latest) for each in self._watched.values()]

    def stop(self) -> None:
        """Read no more."""
        self._stop.set()

    def turn(self) -> None:
        """Read each queue that is ours to report, once."""
        with self._lock:
            watched = list(self._watched.values())
        for each in watched:
            with guard("reading a queue"):
                self._report(each)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                stop = self._stop
                self._thread = threading.Thread(target=self._run, args=(stop,), name="otel-kit-queues", daemon=True)
                self._thread.start()

    def _run(self, stop: threading.Event) -> None:
        # Workers that start together need not all ask at the same moment.
        pause = random.uniform(0, min(1.0, self.interval / 4))
        while not stop.wait(pause):
            began = time.monotonic()
            self.turn()
            pause = max(0.1, self.interval - (time.monotonic() - began))

    def _report(self, watched: _Watched) -> None:
        source = watched.source
        try:
            with silenced(), suppress_instrumentation():
                if not self._is_ours(watched):
                    watched.latest = None
                    return
                state = source.read()
        except Exception as error:  # noqa: BLE001 - a broker that is down is no fault of ours, and none of the application's
            watched.latest = None
            if not watched.down:
                _logger.warning("otel-kit: the state of queue %s cannot be read: %s", source.name, error)
            watched.down = True
            return
        watched.down, watched.latest = False, state
        apart.export(SERVICE, f"queue:{source.system}/{source.name}", _values(source, state))

    def _is_ours(self, watched: _Watched) -> bool:
        if watched.lease is None or not self.leased:
            return True
        key = f"otel-kit:reporter:{watched.source.system}/{watched.source.name}"
        return watched.lease.hold(key, self._token, self.interval * _LEASE_INTERVALS)


def _values(source: QueueSource, state: QueueState) -> Values:
    labels = {catalogue.MESSAGING_SYSTEM: source.system, catalogue.MESSAGING_DESTINATION: source.name}
    age = 0.0 if state.oldest_ready_at is None else max(0.0, time.time() - state.oldest_ready_at)
    return [
        *(
            (catalogue.QUEUE_DEPTH, float(getattr(state, name)), {**labels, catalogue.JOB_STATE: name})
            for name in ("ready", "scheduled", "reserved", "dead")
        ),
        (catalogue.QUEUE_OLDEST, age, labels),
    ]


reporter = QueueReporter()


def watch_queue(source: QueueSource, lease: ReporterLease | None) -> None:
    """Report a queue's depth and age from this process, unless another holds the lease.

    Args:
        source: How it is read.
        lease: What decides between processes; None where there is only one.
    """
    reporter.watch(source, lease)
