"""A spool on disk: what one signal has for one destination in its service's folder."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from otel_kit.telemetry.payload import Cause, Payload, Signal
from otel_kit.telemetry.spool import files
from otel_kit.telemetry.spool.files import Corrupt, Entry
from otel_kit.telemetry.spool.folder import Dropped, Folder
from otel_kit.telemetry.spool.lock import FileLock
from otel_kit.telemetry.spool.store import LIMIT, MAX_AGE, OnDrop

#: Nanoseconds within which a file system may give two changes the same time (FAT counts in twos of seconds).
_TICK = 2_000_000_000
_NEVER, _PUT = -1, -2  # in the place of a time: not looked yet; we put something ourselves since
#: Seconds of a look at all files from which on `DiskSpool.size` may answer with what it saw before.
_LONG = 0.05


class DiskSpool:
    """A `Store` on disk for one signal and one destination. It holds no lock of its own that a fork could carry over.

    Args:
        root: From `otel_kit.telemetry.spool.open_root`.
        service: The service's full identity, any text: it decides who shares a folder.
        signal: What it keeps. Other files are left alone, but for the bound and their age.
        fingerprint: Names the destination and who is let in there, in letters, digits, ``-`` and ``_``; 64 at most.
        limit: Bytes of the service's folder, all signals and destinations, at most.
        max_age: Seconds after which a payload is given up.
        on_drop: Told of everything that this process gives up, of whichever signal; called while no lock is held.
        clock: Unix seconds.

    Raises:
        ValueError: The fingerprint cannot be part of a file name.
    """

    def __init__(
        self,
        root: Path,
        service: str,
        signal: Signal,
        fingerprint: str,
        *,
        limit: int = LIMIT,
        max_age: float = MAX_AGE,
        on_drop: OnDrop,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not re.fullmatch(r"[\w-]{1,64}", fingerprint, re.ASCII):
            raise ValueError(f"fingerprint {fingerprint!r}: 1 to 64 letters, digits, - and _ are accepted")
        self._folder = Folder(root, service, limit=limit, max_age=max_age, clock=clock)
        self._signal = signal
        self._fingerprint = fingerprint
        self._ending = files.ending(signal, fingerprint)
        self._on_drop = on_drop
        # Containers that share a folder may share process ids too: their numbers do not start alike.
        self._numbers = itertools.count(secrets.randbits(40))
        self._seen: int | None = _NEVER
        self._seen_early = False
        self._settled: set[str] = set()
        self._size, self._size_until = 0, 0.0

    def put(self, payload: Payload) -> bool:
        if len(payload.body) > files.LARGEST_BODY:
            return False
        entry = Entry.of(payload, next(self._numbers), self._fingerprint)
        dropped: Dropped = []
        try:
            self._folder.put(entry, files.pack(payload), dropped)
        except OSError:
            return False
        finally:
            self._count(dropped)
        self._seen = _PUT if self._seen != _NEVER else _NEVER
        return True

    def claim(self) -> DiskClaim | None:
        try:
            lock = self._folder.lock(f"{self._signal}.{self._fingerprint}", 0.0) if self._is_waiting() else None
        except OSError:
            return None
        return None if lock is None else DiskClaim(self, lock)

    def size(self) -> int:
        # With very many files a look takes its time, and eight processes may have three gauges each: no more than one
        # hundredth of the time goes into that.
        began = time.monotonic()
        if began < self._size_until:
            return self._size
        size = 0
        for found in self._folder.listing():
            if self._is_mine(found.name):
                with suppress(OSError):
                    size += found.stat(follow_symlinks=False).st_size
        took = time.monotonic() - began
        self._size, self._size_until = size, began + 100 * took if took > _LONG else 0.0
        return size

    def changed(self) -> bool:
        mtime = self._folder.mtime()
        early = mtime is not None and time.time_ns() - mtime < _TICK
        if mtime == self._seen:
            # Something may have come in the same tick of the file system's clock as what we saw: look once more.
            if not self._seen_early or early:
                return False
            self._seen_early = False
            return self._is_waiting()
        first = self._seen == _NEVER
        self._seen, self._seen_early = mtime, early
        return self._is_waiting() if first else mtime is not None

    def reset_after_fork(self) -> None:
        self._folder.in_hand = None
        self._folder.reset_after_fork()

    # For claims

    def waiting(self) -> Iterator[Entry]:
        """What could be replayed, in no order."""
        for found in self._folder.listing():
            if self._is_mine(found.name) and found.name not in self._settled:
                entry = Entry.parse(found.name)
                if entry is not None:
                    yield entry

    def load(self, entry: Entry) -> Payload | None:
        """Read a payload; None where there is none to be had, and counted if it was this call that did away with it."""
        dropped: Dropped = []
        try:
            if not self._folder.is_expired(entry):
                return files.read(self._folder.path(entry), self._signal)
            self._folder.drop(entry, Cause.EXPIRED, dropped)
        except Corrupt:
            self._folder.set_aside(entry, dropped)
        except OSError:
            return None  # gone, or not to be had just now
        self._count(dropped)
        return None

    def hold(self, entry: Entry | None) -> None:
        """Say which payload is being replayed: room is made at the cost of others."""
        self._folder.in_hand = entry

    def settle(self, entry: Entry) -> None:
        """Remove a payload. Where the disk refuses, this process will not hand it out again at least."""
        try:
            self._folder.path(entry).unlink(missing_ok=True)
        except OSError:
            self._settled.add(entry.name)

    def release(self, lock: FileLock) -> None:
        """End a claim. Its lock's file goes too: destinations come and go."""
        self._folder.release(lock, remove=True)

    def _is_waiting(self) -> bool:
        return next(self.waiting(), None) is not None

    def _is_mine(self, name: str) -> bool:
        return name.endswith(self._ending) and not name.startswith(".")

    def _count(self, dropped: Dropped) -> None:
        for entry, cause in dropped:
            self._on_drop(entry.signal, cause, entry.items)


class DiskClaim:
    """The sole right, among all processes and threads, to replay one signal's payloads for one destination.

    In a forked child the parent's claim hands out and removes nothing.
    """

    def __init__(self, spool: DiskSpool, lock: FileLock) -> None:
        self._spool = spool
        self._lock = lock
        self._looked_at: set[str] = set()
        self._ahead: list[Entry] = []
        self._handed: Entry | None = None

    def next(self) -> Payload | None:
        self._hand(None)
        while self._lock.ours:
            if not self._ahead:
                fresh = [entry for entry in self._spool.waiting() if entry.name not in self._looked_at]
                self._ahead = sorted(fresh, reverse=True)
                if not self._ahead:
                    break
            entry = self._ahead.pop()
            self._looked_at.add(entry.name)
            payload = self._spool.load(entry)
            if payload is not None:
                self._hand(entry)
                return payload
        return None

    def done(self) -> None:
        handed = self._handed
        if handed is not None and self._lock.ours:
            self._spool.settle(handed)
            self._hand(None)

    def close(self) -> None:
        self._hand(None)
        self._spool.release(self._lock)

    def _hand(self, entry: Entry | None) -> None:
        self._handed = entry
        if self._lock.ours:
            self._spool.hold(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
