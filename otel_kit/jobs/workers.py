"""How busy a worker is, and whether it still moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from otel_kit import catalogue
from otel_kit.guard import guard
from otel_kit.telemetry.limits import cut

#: Characters of the joined names of a worker's queues.
_LONGEST = 200


class Pool:
    """Slots that work on the same queues. Busy time adds up as it passes, so that a job of hours shows while it runs."""

    def __init__(self, queues: Sequence[str], slots: Callable[[], int]) -> None:
        self.queues = frozenset(queues)
        self.label = cut(",".join(sorted(self.queues)), _LONGEST)
        self.slots = slots
        self.active = 0
        self._busy = 0.0
        self._since = time.monotonic()

    def change(self, by: int) -> None:
        """So many more jobs run, or fewer."""
        self.busy()
        self.active = max(0, self.active + by)

    def busy(self) -> float:
        """Seconds that slots have been busy until now."""
        now = time.monotonic()
        self._busy += self.active * (now - self._since)
        self._since = now
        return self._busy


class Workers:
    """The pools of this process and its signs of life."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pools: list[Pool] = []
        self._beats: dict[str, Callable[[], float]] = {}

    def reset_after_fork(self) -> None:
        """A child of a pool is one of its slots, and not a pool of its own."""
        self._lock = threading.RLock()
        self._pools.clear()
        self._beats.clear()

    def pool(self, queues: Sequence[str], slots: Callable[[], int]) -> None:
        """This process works on ``queues``; a second call for the same queues replaces the number of slots."""
        with self._lock:
            for known in self._pools:
                if known.queues == frozenset(queues):
                    known.slots = slots
                    return
            self._pools.append(Pool(queues, slots))
        self.beat("thread", time.time)

    def change(self, queue: str, by: int) -> None:
        """A job of ``queue`` began or ended."""
        with self._lock:
            found = next((pool for pool in self._pools if queue in pool.queues), None)
            # A queue by another name than the worker's own is the only pool's; a job without one takes no slot.
            if found is None and queue and len(self._pools) == 1:
                found = self._pools[0]
            if found is not None:
                found.change(by)

    def beat(self, source: str, at: Callable[[], float] | None = None) -> None:
        """A sign of life now, or where to ask for the last one (unix seconds)."""
        if at is None:
            now = time.time()
            at = lambda: now  # noqa: E731 - a value, asked for like the others
        self._beats[source] = at

    def observe_slots(self) -> Iterable[tuple[float, dict[str, str]]]:
        """Slots of each pool."""
        return [(float(slots), {catalogue.MESSAGING_DESTINATION: pool.label}) for pool, slots in self._sizes()]

    def observe_count(self) -> Iterable[tuple[float, dict[str, str]]]:
        """Busy and available slots of each pool."""
        found: list[tuple[float, dict[str, str]]] = []
        for pool, slots in self._sizes():
            for state, number in (("busy", pool.active), ("available", max(0, slots - pool.active))):
                labels = {catalogue.MESSAGING_DESTINATION: pool.label, catalogue.JOB_WORKER_STATE: state}
                found.append((float(number), labels))
        return found

    def observe_busy(self) -> Iterable[tuple[float, dict[str, str]]]:
        """Busy seconds of each pool."""
        with self._lock:
            return [(pool.busy(), {catalogue.MESSAGING_DESTINATION: pool.label}) for pool in self._pools]

    def observe_beats(self) -> Iterable[tuple[float, dict[str, str]]]:
        """The last sign of life of each source."""
        label = self._pools[0].label if self._pools else ""
        found = []
        for source, at in list(self._beats.items()):
            with guard("asking for a sign of life"):
                found.append((at(), {catalogue.MESSAGING_DESTINATION: label, catalogue.HEARTBEAT_SOURCE: source}))
        return found

    def _sizes(self) -> list[tuple[Pool, int]]:
        sizes = []
        for pool in list(self._pools):
            with guard("asking for a number of slots"):
                sizes.append((pool, pool.slots()))
        return sizes
