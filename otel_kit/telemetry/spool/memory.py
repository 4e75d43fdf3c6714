"""A spool in memory, where there is no disk or none is wanted. It ends with the process."""

from __future__ import annotations

import bisect
import itertools
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from otel_kit.telemetry.payload import Cause, Payload, Signal
from otel_kit.telemetry.spool.store import LIMIT, MAX_AGE, OnDrop

_Kept = tuple[float, int, Payload]  # sorts by age; the number keeps payloads from being compared


class MemorySpool:
    """A `Store` without a disk.

    Args:
        signal: What it keeps.
        limit: Bytes of bodies that it keeps at most.
        max_age: Seconds after which a payload is given up.
        on_drop: Told of everything that is given up.
        clock: Unix seconds.
    """

    def __init__(
        self,
        signal: Signal,
        *,
        limit: int = LIMIT,
        max_age: float = MAX_AGE,
        on_drop: OnDrop,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._signal = signal
        self._limit = limit
        self._max_age = max_age
        self._on_drop = on_drop
        self._clock = clock
        self._empty()

    def _empty(self) -> None:
        self._lock = threading.RLock()
        self._kept: list[_Kept] = []
        self._size = 0
        self._numbers = itertools.count()
        self._changed = False
        self._claim: _MemoryClaim | None = None

    def put(self, payload: Payload) -> bool:
        with self._lock:
            expired = self._expire()
            evicted, room = self._evict(len(payload.body))
            if room:
                bisect.insort(self._kept, (payload.created, next(self._numbers), payload))
                self._size += len(payload.body)
                self._changed = True
        self._count(Cause.EXPIRED, expired)
        self._count(Cause.SPOOL_FULL, evicted)
        return room

    def claim(self) -> _MemoryClaim | None:
        with self._lock:
            if self._claim is not None or not self._kept:
                return None
            self._claim = _MemoryClaim(self)
            return self._claim

    def size(self) -> int:
        with self._lock:
            return self._size

    def changed(self) -> bool:
        with self._lock:
            changed, self._changed = self._changed, False
            return changed

    def reset_after_fork(self) -> None:
        # All of it is the parent's to deliver, and so is its claim.
        self._empty()

    def oldest(self, seen: set[int], claim: _MemoryClaim) -> _Kept | None:
        """The oldest payload whose number is not in ``seen``, for the one who may replay."""
        with self._lock:
            if claim is not self._claim:
                return None
            expired = self._expire()
            found = next((kept for kept in self._kept if kept[1] not in seen), None)
        self._count(Cause.EXPIRED, expired)
        return found

    def settle(self, kept: _Kept, claim: _MemoryClaim) -> None:
        with self._lock:
            if claim is self._claim and kept in self._kept:
                self._remove(kept)

    def free(self, claim: _MemoryClaim) -> None:
        with self._lock:
            if claim is self._claim:
                self._claim = None

    def _expire(self) -> list[Payload]:
        oldest = self._clock() - self._max_age
        expired = []
        while self._kept and self._kept[0][0] < oldest:
            expired.append(self._remove(self._kept[0]))
        return expired

    def _evict(self, size: int) -> tuple[list[Payload], bool]:
        """Make room, but not at the cost of what is just being replayed; what went, and whether there is room now."""
        evicted: list[Payload] = []
        in_hand = None if self._claim is None else self._claim.handed
        while size <= self._limit < self._size + size:
            oldest = next((kept for kept in self._kept if kept is not in_hand), None)
            if oldest is None:
                break
            evicted.append(self._remove(oldest))
        return evicted, self._size + size <= self._limit

    def _remove(self, kept: _Kept) -> Payload:
        self._kept.remove(kept)
        self._size -= len(kept[2].body)
        return kept[2]

    def _count(self, cause: Cause, payloads: list[Payload]) -> None:
        for payload in payloads:
            self._on_drop(self._signal, cause, payload.items)


class _MemoryClaim:
    def __init__(self, spool: MemorySpool) -> None:
        self._spool = spool
        self._seen: set[int] = set()
        self.handed: _Kept | None = None

    def next(self) -> Payload | None:
        self.handed = self._spool.oldest(self._seen, self)
        if self.handed is None:
            return None
        self._seen.add(self.handed[1])
        return self.handed[2]

    def done(self) -> None:
        handed, self.handed = self.handed, None
        if handed is not None:
            self._spool.settle(handed, self)

    def close(self) -> None:
        self._spool.free(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
