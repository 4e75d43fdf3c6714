"""A service's folder: shared by all its processes, signals and destinations, and bounded for all of them together.

Layout::

    {service}-{hash}/
        {created, ms}-{pid}-{number}.{items}.{signal}.{fingerprint}.otlp    a payload each, see `files`
        .{the same}                                                         one that is being written
        corrupt/                                                            what could not be read, for people to look at
        locks/put                                                           held by who writes
        locks/{signal}.{fingerprint}                                        held by who replays
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from otel_kit.telemetry.payload import SIGNALS, Cause, Signal
from otel_kit.telemetry.spool import files
from otel_kit.telemetry.spool.files import Entry
from otel_kit.telemetry.spool.lock import FileLock
from otel_kit.telemetry.spool.root import close_to_others

#: Files in ``corrupt`` at most.
CORRUPT_KEPT: Final = 16
_CORRUPT, _LOCKS = "corrupt", "locks"
#: Seconds that a writer waits for another one. The bound may be missed then; better than losing the payload.
_LOCK_WAIT = 1.0
#: Seconds after which a file that was begun is nobody's any more.
_UNFINISHED_AGE = 600.0
#: Seconds between two looks at every file, at most; a hundredth of the greatest age where that is less.
_RESCAN = 60.0
_TALLY = struct.Struct(">8sQqd")  # version, bytes kept, the folder's mtime with them, when they were counted (unix)
_TALLY_VERSION = b"tally\0\0\x01"

#: What was removed, and why: to be counted when no lock is held any more.
Dropped = list[tuple[Entry, Cause]]


def folder_name(service: str) -> str:
    """What a service's folder is called: readable, and never as another service's."""
    identity = hashlib.sha256(service.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    readable = re.sub(r"[^a-z0-9_.]+", "-", service.lower(), flags=re.ASCII)[:40].strip("-.")
    return f"{readable or 'service'}-{identity}"


class _File(NamedTuple):
    entry: Entry
    size: int


class Folder:
    """One process's view of a service's folder. Nothing is touched before something is put.

    Args:
        root: The directory that it lies in.
        service: The service's full identity, any text.
        limit: Bytes of all files together, at most. Their lengths count, not what a file system makes of them.
        max_age: Seconds after which a payload is given up.
        clock: Unix seconds.
    """

    def __init__(
        self, root: Path, service: str, *, limit: int, max_age: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._root = root
        self._path = root / folder_name(service)
        self._limit = limit
        self._max_age = max_age
        self._clock = clock
        self._prepared = False
        self._held: set[FileLock] = set()
        #: The payload that this process is just replaying: not to be counted as given up before that is known.
        self.in_hand: Entry | None = None

    def path(self, entry: Entry) -> Path:
        """Where a payload is."""
        return self._path / entry.name

    def mtime(self) -> int | None:
        """When a file last came or went, in nanoseconds as the file system counts them; None without a folder."""
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return None

    def listing(self) -> Iterator[os.DirEntry[str]]:
        """Everything in it, in no order."""
        with suppress(OSError), os.scandir(self._path) as found:
            yield from found

    def is_expired(self, entry: Entry) -> bool:
        return entry.created_ms / 1000 + self._max_age < self._clock()

    def put(self, entry: Entry, content: bytes, dropped: Dropped) -> None:
        """Write a payload's file, within the bound.

        Raises:
            OSError: It could not be kept.
        """
        if len(content) > self._limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        try:
            self._put(entry, content, dropped)
        except FileNotFoundError:  # the folder was deleted; once more, with a new one
            self._put(entry, content, dropped)

    def drop(self, entry: Entry, cause: Cause, dropped: Dropped) -> bool:
        """Remove a payload. Whether it is gone; counted only if it was this call that did it."""
        try:
            self.path(entry).unlink()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        dropped.append((entry, cause))
        return True

    def set_aside(self, entry: Entry, dropped: Dropped) -> None:
        """Move what cannot be read out of the way, and keep the newest of it."""
        aside = self._path / _CORRUPT
        try:
            close_to_others(aside)
            self.path(entry).rename(aside / entry.name)
        except FileNotFoundError:
            return
        except OSError:  # no place for it: it is worth nothing where it is
            self.drop(entry, Cause.CORRUPT, dropped)
            return
        dropped.append((entry, Cause.CORRUPT))
        with suppress(OSError):
            for old in sorted(aside.iterdir())[:-CORRUPT_KEPT]:
                old.unlink()

    def lock(self, name: str, wait: float) -> FileLock | None:
        """A lock of the folder's, None where it could not be had within ``wait`` seconds. To be given to `release`.

        Raises:
            OSError: There can be no such lock.
        """
        path = self._path / _LOCKS / name
        if not self._prepared:
            self._prepare()
        try:
            lock = FileLock.take(path, wait)
        except FileNotFoundError:  # deleted since
            self._prepare()
            lock = FileLock.take(path, wait)
        if lock is not None:
            self._held.add(lock)
        return lock

    def release(self, lock: FileLock, *, remove: bool = False) -> None:
        self._held.discard(lock)
        lock.release(remove=remove)

    def reset_after_fork(self) -> None:
        held, self._held = self._held, set()
        for lock in held:
            lock.release()

    def _prepare(self) -> None:
        for directory in (self._root, self._path, self._path / _LOCKS):
            close_to_others(directory)
        self._prepared = True

    def _put(self, entry: Entry, content: bytes, dropped: Dropped) -> None:
        lock = self.lock("put", _LOCK_WAIT)
        try:
            # Wiped out until we are through: a process that is killed here must not leave a sum that is too small.
            note = b"" if lock is None else lock.take_note()
            kept, counted = self._tally(note, len(content)) or self._make_room(entry.signal, len(content), dropped)
            files.write(self.path(entry), content)
            mtime = self.mtime()
            if lock is not None and mtime is not None:
                lock.leave_note(_TALLY.pack(_TALLY_VERSION, kept + len(content), mtime, counted))
        finally:
            if lock is not None:
                self.release(lock)

    def _tally(self, note: bytes, size: int) -> tuple[int, float] | None:
        """What the writer before counted, if it still holds and there is room: saves looking at every file each time."""
        try:
            version, kept, mtime, counted = _TALLY.unpack(note)
        except struct.error:
            return None
        fresh = 0 <= self._clock() - counted < min(_RESCAN, self._max_age / 100)
        if version != _TALLY_VERSION or mtime != self.mtime() or not fresh or kept + size > self._limit:
            return None
        return kept, counted

    def _make_room(self, signal: Signal, size: int, dropped: Dropped) -> tuple[int, float]:
        """Remove what is too old, then as much as ``size`` more bytes ask for.

        Returns:
            Bytes kept then, and the time.

        Raises:
            OSError: There is no room to be made.
        """
        kept, set_aside, total = self._sweep(dropped)
        for path, length in set_aside:  # counted as lost already: these go first
            with suppress(OSError):
                if total + size > self._limit:
                    path.unlink()
                    total -= length
        if total + size > self._limit:
            total -= self._evict(kept, total + size - self._limit, signal, size, dropped)
        if total + size > self._limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        return total, self._clock()

    def _sweep(self, dropped: Dropped) -> tuple[list[_File], list[tuple[Path, int]], int]:
        """Remove what is too old.

        Returns:
            The payloads, the files in ``corrupt`` (oldest first), and the bytes of everything.
        """
        kept: list[_File] = []
        set_aside: list[tuple[Path, int]] = []
        total = 0
        for found in self.listing():
            with suppress(OSError):
                if found.name == _CORRUPT and found.is_dir(follow_symlinks=False):
                    set_aside = [(bad, bad.lstat().st_size) for bad in sorted(Path(found).iterdir())]
                    total += sum(length for _, length in set_aside)
                elif (entry := Entry.parse(found.name)) is not None:
                    length = found.stat(follow_symlinks=False).st_size
                    if not (self.is_expired(entry) and self.drop(entry, Cause.EXPIRED, dropped)):
                        kept.append(_File(entry, length))
                        total += length
                elif files.is_unfinished(found.name):
                    status = found.stat(follow_symlinks=False)
                    total += status.st_size
                    if time.time() - status.st_mtime > _UNFINISHED_AGE:
                        Path(found).unlink()
                        total -= status.st_size
        return kept, set_aside, total

    def _evict(self, kept: list[_File], excess: int, signal: Signal, size: int, dropped: Dropped) -> int:
        """Remove the oldest of whichever signal takes most room, so that a flood of logs leaves the traces alone.

        Returns:
            Bytes removed.
        """
        room = Counter({signal: size})
        oldest_last: dict[Signal, list[_File]] = {name: [] for name in SIGNALS}
        for file in sorted(kept, reverse=True):
            room[file.entry.signal] += file.size
            if file.entry != self.in_hand:
                oldest_last[file.entry.signal].append(file)
        # One in a hundred at the least: with very many files, not every put may look at all of them.
        least, removed = len(kept) // 100, 0
        while (removed < excess or least > 0) and any(oldest_last.values()):
            largest = max((name for name in SIGNALS if oldest_last[name]), key=lambda name: room[name])
            file = oldest_last[largest].pop()
            room[largest] -= file.size
            least -= 1
            if self.drop(file.entry, Cause.SPOOL_FULL, dropped):
                removed += file.size
        return removed
