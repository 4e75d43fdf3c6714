"""What outlives the process: when each job last started, succeeded and failed, and since when it has been wanted.

A job of once a night is run by a process that lives for a minute; a worker is deployed anew at noon. What it reports
afterwards (when the last success was, by when the next is due) must not begin with "never". So it is kept in one small
file, written on a thread of ours, and by every process of a service into the same one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from otel_kit.guard import guard
from otel_kit.jobs.history import Past
from otel_kit.telemetry.spool.lock import FileLock
from otel_kit.telemetry.spool.root import SpoolUnusable, close_to_others

_logger = logging.getLogger(__name__)

#: Jobs that are remembered; beyond that those that nothing has been heard of for longest are forgotten.
MAX_JOBS: Final = 1000
#: Bytes of a file that is read: more than `MAX_JOBS` of the longest names take.
MAX_BYTES: Final = 4 * 1024 * 1024
#: Characters of a job's name.
_LONGEST_NAME: Final = 200
#: Seconds that changes are collected for before they are written.
_PAUSE: Final = 1.0
#: Seconds that a writer waits for another process's; nothing is lost, the next change tries again.
_LOCK_WAIT: Final = 1.0
#: Seconds by which a remembered time may lie ahead: hosts that share the directory have clocks of their own.
_AHEAD: Final = 3600.0
_VERSION: Final = 1
_FIELDS: Final = ("last_start", "last_success", "last_failure", "first_seen")


class JobMemory:
    """The file, and what this process has to add to it. `record` may be called from anywhere, a signal handler included.

    A disk that cannot be written to costs one warning, a file that cannot be read counts as none and is replaced.

    Args:
        directory: Its own, closed to others; made when something is first written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "jobs.json"
        self._said: set[str] = set()
        self._changes: dict[str, Past] = {}
        self.renew()

    def reset_after_fork(self) -> None:
        """In a child: what the parent has yet to write is the parent's to write."""
        self._changes = {}
        self.renew()

    def renew(self) -> None:
        """Go on with a new thread, queue and lock, after a fork or when what `threading` offers has been replaced."""
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._saving = threading.Lock()

    def load(self) -> dict[str, Past]:
        """What is remembered, by the names of jobs; nothing where there is no file or none that makes sense."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                content = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._say("reading", f"{self._file} cannot be read ({error.strerror}): jobs begin without a past")
            return {}
        found = _parse(content)
        if found is None:
            self._say("parsing", f"{self._file} makes no sense and will be replaced: jobs begin without a past")
            return {}
        return found

    def record(self, name: str, past: Past) -> None:
        """Have a job's past kept, a second from now. Quick: it waits for nothing, and a later one replaces it.

        Args:
            name: The job's, as metrics have it.
            past: What this process knows; the times are kept that are latest, whichever process they are from.
        """
        self._changes[name[:_LONGEST_NAME]] = replace(past)
        if self._thread is None or not self._thread.is_alive():
            with guard("starting the thread that remembers jobs"):
                self._start()
        if self._asked.empty():
            self._asked.put(None)

    def save(self) -> bool:
        """Write what has been recorded, now, on the calling thread: at a flush. False where that was not possible."""
        with self._saving:
            changes = {}
            # One by one: `record` may add to them meanwhile.
            while self._changes:
                name, past = self._changes.popitem()
                changes[name] = past
            if not changes:
                return True
            try:
                return self._write(changes)
            except (OSError, SpoolUnusable) as error:
                for name, past in changes.items():
                    self._changes.setdefault(name, past)
                why = error.strerror or str(error)
                self._say("writing", f"{self._file} cannot be written ({why}): the past of jobs ends with this process")
                return False

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="otel-kit-memory", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending: the last flush writes it
            self._thread = None

    def _run(self) -> None:
        asked = self._asked
        while True:
            asked.get()
            time.sleep(_PAUSE)
            while not asked.empty():
                asked.get()
            if asked is not self._asked:
                return
            with guard("remembering jobs"):
                self.save()

    def _write(self, changes: Mapping[str, Past]) -> bool:
        close_to_others(self._directory)
        lock = FileLock.take(self._directory / "jobs.lock", _LOCK_WAIT)
        if lock is None:
            raise OSError(0, "another process holds its lock")
        try:
            kept = self.load()
            for name, past in changes.items():
                kept[name] = merged(kept.get(name), past)
            latest = sorted(kept.items(), key=lambda item: _last_heard(item[1]), reverse=True)[:MAX_JOBS]
            body = json.dumps({"version": _VERSION, "jobs": {name: _as_json(past) for name, past in latest}})
            self._replace(body.encode())
        finally:
            lock.release()
        return True

    def _replace(self, body: bytes) -> None:
        partial = self._directory / f"jobs.{secrets.token_hex(4)}.partial"
        for left in self._directory.glob("jobs.*.partial"):  # under the lock: a killed process left it
            left.unlink(missing_ok=True)
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
            # Not synced: after a power cut an older file, or one that makes no sense, is borne.
            partial.replace(self._file)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise

    def _say(self, about: str, what: str) -> None:
        if about not in self._said:
            self._said.add(about)
            _logger.warning("otel-kit: %s; this is said once", what)


def merged(one: Past | None, other: Past) -> Past:
    """What two processes know of a job, together.

    The latest times count, and the earliest moment of having been heard of. Failures in a row are those since the latest
    success, as the process has counted them that has seen more.
    """
    if one is None:
        return replace(other)
    success = _latest(one.last_success, other.last_success)
    failure = _latest(one.last_failure, other.last_failure)
    failures = 0
    if failure is not None and (success is None or failure > success):
        failures = max(1, *(past.consecutive_failures for past in (one, other) if past.last_success == success), 0)
    seen = [at for at in (one.first_seen, other.first_seen) if at is not None]
    return Past(
        last_start=_latest(one.last_start, other.last_start),
        last_success=success,
        last_failure=failure,
        consecutive_failures=failures,
        first_seen=min(seen, default=None),
    )


def _last_heard(past: Past) -> float:
    return max((at for name in _FIELDS if (at := getattr(past, name)) is not None), default=0.0)


def _latest(*times: float | None) -> float | None:
    return max((at for at in times if at is not None), default=None)


def _as_json(past: Past) -> dict[str, float]:
    found = {name: at for name in _FIELDS if (at := getattr(past, name)) is not None}
    return {**found, "consecutive_failures": past.consecutive_failures}


def _parse(content: bytes) -> dict[str, Past] | None:
    if len(content) > MAX_BYTES:
        return None
    try:
        found: Any = json.loads(content)
        if found["version"] != _VERSION:
            return None
        jobs = [(str(name)[:_LONGEST_NAME], _past(values)) for name, values in found["jobs"].items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return dict(jobs[:MAX_JOBS])


def _past(values: Mapping[str, Any]) -> Past:
    newest = time.time() + _AHEAD
    times = {}
    for name in _FIELDS:
        at = values.get(name)
        # A clock that once was wrong must not let every later success look old.
        if isinstance(at, (int, float)) and not isinstance(at, bool) and math.isfinite(at) and 0 < at < newest:
            times[name] = float(at)
    count = values.get("consecutive_failures", 0)
    return Past(**times, consecutive_failures=min(max(count, 0), 10**9) if type(count) is int else 0)
