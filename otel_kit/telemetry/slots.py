"""Places that successive short-lived processes take one after the other, each going on with the totals of the one before.

A process that lives for one job has no time to make a series of its own: a thousand of them a minute would make a
thousand series, and each would count to the same five. So a forked child takes a *slot*: a lock file of the service's
directory that only one living process holds. Its id is the ``service.instance.id`` of that process's metrics, and its
state, the totals that were exported last, is what they start from. As many slots are made as there are children alive at
once, and no more.

flock and not a pid in a file: the kernel lets go of it at a SIGKILL, and a pid may be somebody else's by then.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import struct
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.util.types import AttributeValue

from otel_kit import catalogue
from otel_kit.telemetry.totals import Totals, begin_earlier, continuable

_logger = logging.getLogger(__name__)

#: Slots of one identity, and so children alive at once; those beyond go without.
MAX_SLOTS: Final = 1024
#: Streams that one slot remembers.
MAX_STREAMS: Final = 10_000
#: Bytes of one slot's state.
MAX_STATE: Final = 8 * 1024 * 1024
#: Seconds after which totals are not gone on with.
MAX_AGE: Final = 24 * 3600.0

#: Attributes that tell one process from the next, not one kind of process from another.
_OF_ONE_PROCESS: Final = frozenset({catalogue.SERVICE_INSTANCE_ID, catalogue.PROCESS_PID, "process.parent_pid"})
# Magic and version; unix time of saving in seconds; digest over all that follows it.
_HEADER: Final = struct.Struct(">8sd16s")
_MAGIC: Final = b"otkslot1"
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_SWEPT_AT_ONCE: Final = 64


class Slot:
    """One place, held. Made by `Slots.take`. Safe to use from several threads.

    Attributes:
        id: The ``service.instance.id`` of everything that this slot's holders export, a UUID.
    """

    def __init__(self, descriptor: int, identifier: str, state: Path) -> None:
        self.id = identifier
        self._descriptor: int | None = descriptor
        self._state = state
        self._lock = threading.Lock()
        self._said = False
        self._base = Totals(_load(state, identifier))

    def continued(self, request: ExportMetricsServiceRequest) -> ExportMetricsServiceRequest:
        """Make one collection of this process's metrics, whole, into what the slot exports; changes it in place.

        The slot's id stands in for the process's, its process id goes (Prometheus would make a series of ``target_info``
        for each), monotonic sums and histograms go on from where the holder before stopped, with the start time of the
        first (see `otel_kit.telemetry.totals.begin_earlier`). Gauges, up-down counters and delta points stay as they are.
        """
        for group in request.resource_metrics:
            kept = [pair for pair in group.resource.attributes if pair.key not in _OF_ONE_PROCESS]
            del group.resource.attributes[:]
            group.resource.attributes.extend(kept)
            group.resource.attributes.append(
                KeyValue(key=catalogue.SERVICE_INSTANCE_ID, value=AnyValue(string_value=self.id))
            )
        begin_earlier(request)
        with self._lock:
            self._base.add_to(request)
        return request

    def amend(self, request: ExportMetricsServiceRequest) -> ExportMetricsServiceRequest:
        """What `continued` makes of a collection, remembered: call it before the request can reach anybody.

        A process that is killed between the two has then lost nothing that the next holder does not make good, whereas
        totals that were seen and not remembered would be counted once more.
        """
        self.remember(self.continued(request))
        return request

    def remember(self, request: ExportMetricsServiceRequest) -> None:
        """Keep what `continued` has made of a collection, for the next holder; it takes the place of what was kept before.

        Nothing is kept once the slot is let go.
        """
        state, streams = continuable(request)
        body = state.SerializeToString()
        with self._lock:
            if self._descriptor is None:
                return
            try:
                if streams > MAX_STREAMS or len(body) > MAX_STATE - _HEADER.size:
                    self._say(f"{streams} streams in {len(body)} bytes are more than a slot keeps")
                    self._state.unlink(missing_ok=True)
                else:
                    _save(self._state, self.id, body)
            except OSError as error:
                self._say(f"{self._state} could not be written ({error.strerror})")
                # An older one would let the next holder begin below what was exported.
                with contextlib.suppress(OSError):
                    self._state.unlink()

    def release(self) -> None:
        """Let the slot go, for the next to take. Again changes nothing."""
        with self._lock:
            self._close()

    def reset_after_fork(self) -> None:
        """In a forked child: leave the slot to the parent. The lock belongs to both until the child has closed its end."""
        self._lock = threading.Lock()
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # No LOCK_UN: it would take the lock from every process that shares it.
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _say(self, what: str) -> None:
        if not self._said:
            self._said = True
            _logger.warning("otel-kit: %s: the next process's totals begin at zero; this is said once", what)


class Slots:
    """The slots of one directory.

    Args:
        directory: Made by the caller, of this user alone (0700).
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: list[Slot] = []

    def take(self, identity: Mapping[str, AttributeValue]) -> Slot | None:
        """The lowest slot of these resource attributes that nobody holds. Does not wait for anything.

        Args:
            identity: The process's resource. Its instance and process ids do not matter; with another version,
                environment or host it is another identity, and its totals are others.

        Returns:
            None where the directory cannot be used or `MAX_SLOTS` are taken.
        """
        named = _digest(identity)
        try:
            for number in range(MAX_SLOTS):
                slot = self._try(named, self._directory / f"{named}-{number}.lock")
                if slot is not None:
                    self._held.append(slot)
                    return slot
        except OSError as error:
            _logger.debug("otel-kit: no slots in %s (%s)", self._directory, error.strerror)
        return None

    def reset_after_fork(self) -> None:
        """In a forked child: leave the parent's slots to the parent."""
        held, self._held = self._held, []
        for slot in held:
            slot.reset_after_fork()

    def _try(self, named: str, path: Path) -> Slot | None:
        descriptor = _lock(path)
        if descriptor is None:
            return None
        try:
            found = os.pread(descriptor, 64, 0)
            seed = _uuid(found)
            if seed is None:
                seed = uuid.uuid4()
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(seed).encode(), 0)
                self._sweep()
            os.utime(descriptor)
            # The seed is of this directory alone; with the identity in it, a directory that was copied to another host,
            # in the image of a container for instance, does not bring its ids along.
            return Slot(descriptor, str(uuid.uuid5(seed, named)), path.with_suffix(".state"))
        except BaseException:
            os.close(descriptor)
            raise

    def _sweep(self) -> None:
        """Remove slots that nobody has held for a day: of versions before this one, of busier times."""
        oldest, left = time.time() - MAX_AGE, _SWEPT_AT_ONCE
        with contextlib.suppress(OSError):
            for path in self._directory.glob("*.lock"):
                if left == 0 or path.stat().st_mtime > oldest:
                    continue
                descriptor = _lock(path)
                if descriptor is None:
                    continue
                try:
                    if os.fstat(descriptor).st_mtime <= oldest and _saved_at(path.with_suffix(".state")) <= oldest:
                        path.with_suffix(".state").unlink(missing_ok=True)
                        path.unlink()
                        left -= 1
                finally:
                    os.close(descriptor)


def _digest(identity: Mapping[str, AttributeValue]) -> str:
    kind = sorted((name, value) for name, value in identity.items() if name not in _OF_ONE_PROCESS)
    return hashlib.sha256(json.dumps(kind, default=repr).encode()).hexdigest()[:16]


def _uuid(text: bytes) -> uuid.UUID | None:
    try:
        return uuid.UUID(text.decode("ascii"))
    except ValueError:
        return None


def _lock(path: Path) -> int | None:
    """The descriptor of a file that is locked now; None where somebody else holds it, or has just removed it."""
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _seal(identifier: str, body: bytes) -> bytes:
    return hashlib.blake2b(identifier.encode() + body, digest_size=16).digest()


def _save(path: Path, identifier: str, body: bytes) -> None:
    # Its name need not be unique: only the holder writes it, and what a killed one left is written over.
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(_HEADER.pack(_MAGIC, time.time(), _seal(identifier, body)) + body)
    partial.replace(path)


def _load(path: Path, identifier: str) -> ExportMetricsServiceRequest:
    """What the holder before has left; nothing where that cannot be read, is not this slot's, or is too old."""
    nothing = ExportMetricsServiceRequest()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(MAX_STATE + 1)
    except OSError:
        return nothing
    if not _HEADER.size <= len(content) <= MAX_STATE:
        return nothing
    magic, saved_at, seal = _HEADER.unpack_from(content)
    body = content[_HEADER.size :]
    if magic != _MAGIC or seal != _seal(identifier, body) or abs(time.time() - saved_at) > MAX_AGE:
        return nothing
    try:
        return ExportMetricsServiceRequest.FromString(body)
    except DecodeError:
        return nothing


def _saved_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
