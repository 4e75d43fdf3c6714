"""A lock between processes, and between the threads of one."""

from __future__ import annotations

import fcntl
import os
import random
import time
from contextlib import suppress
from pathlib import Path


class FileLock:
    """An exclusive lock on a file, which the kernel frees when the process ends, also by SIGKILL.

    flock belongs to the open file description. The file is opened anew each time, so that threads exclude each other as
    processes do. A forked child shares the description: it must close its copy (that unlocks nothing), or the lock would
    outlive the parent.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor: int | None = descriptor
        self._path = path
        self._owner = os.getpid()

    @classmethod
    def take(cls, path: Path, wait: float) -> FileLock | None:
        """The lock, or None where it could not be had within ``wait`` seconds.

        Raises:
            OSError: The file cannot be opened or locked at all.
        """
        deadline = time.monotonic() + wait
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever had it may have removed the file, and the next one made another.
                if _is_at(descriptor, path):
                    return cls(descriptor, path)
                os.close(descriptor)
            except BlockingIOError:
                os.close(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            if time.monotonic() >= deadline:
                return None
            time.sleep(random.uniform(0.0005, 0.005))  # uneven, so that waiting processes do not march in step

    @property
    def ours(self) -> bool:
        """Whether it is held, and by this process."""
        return self._descriptor is not None and self._owner == os.getpid()

    def release(self, *, remove: bool = False) -> None:
        """Free it, once; ``remove`` the file too. In a forked child: only let go of the copy."""
        # Out of sight first: a fork right now must not find a number that was closed and given to another file.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with suppress(OSError):
            if self._owner == os.getpid():
                if remove and _is_at(descriptor, self._path):
                    self._path.unlink()
                # Not by closing alone: a child that was forked meanwhile may still have its copy.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        with suppress(OSError):
            os.close(descriptor)

    def take_note(self) -> bytes:
        """What the one before wrote into the file with `leave_note`; it is wiped out."""
        if self._descriptor is None:
            return b""
        note = os.pread(self._descriptor, 256, 0)
        os.ftruncate(self._descriptor, 0)
        return note

    def leave_note(self, note: bytes) -> None:
        """Write a few bytes for the next one. They may not get there: the disk may be full."""
        with suppress(OSError):
            if self._descriptor is not None:
                os.pwrite(self._descriptor, note, 0)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
