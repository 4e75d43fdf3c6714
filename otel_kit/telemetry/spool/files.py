"""One payload, one file: the name tells what a listing needs, the content proves that it is whole."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, cast

from otel_kit.telemetry.payload import Payload, Signal

#: Bytes of a body that are kept and, more to the point, unpacked: a crafted file must not fill the memory.
LARGEST_BODY: Final = 64 * 1024 * 1024

_SUFFIX = "otlp"
_NAME = re.compile(rf"(\d{{13}})-(\d+)-(\d+)\.(\d+)\.(traces|metrics|logs)\.([\w-]+)\.{_SUFFIX}", re.ASCII)
_LATEST_MS = 9_999_999_999_999  # thirteen digits: the names sort by age until the year 2286
_MAGIC = b"otelkit\x01"  # the last byte is the version of the format
_HEADER = struct.Struct(">8sI")  # magic, CRC-32 of all that follows
_FACTS = struct.Struct(">Id")  # items, created; then the body, gzip
_GZIP = 31  # zlib's code for a gzip container with the largest window
# gzip may add to what cannot be compressed: five bytes per 16 KiB and its own frame.
_LARGEST_FILE = _HEADER.size + _FACTS.size + LARGEST_BODY + LARGEST_BODY // 1000 + 64
# It is gone, or we are short of something for the moment: nothing is wrong with the file.
_PASSING = frozenset({errno.ENOENT, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Corrupt(Exception):  # noqa: N818 - named after the cause that it is counted under
    """A file that is no payload of ours, or not whole."""


class Entry(NamedTuple):
    """What a name tells. Entries sort by age."""

    created_ms: int
    pid: int
    sequence: int
    items: int
    signal: Signal
    fingerprint: str
    name: str

    @classmethod
    def of(cls, payload: Payload, sequence: int, fingerprint: str) -> Entry:
        """The entry under which this process keeps ``payload``."""
        created, pid = min(max(0, int(payload.created * 1000)), _LATEST_MS), os.getpid()
        name = f"{created:013d}-{pid}-{sequence}.{payload.items}.{payload.signal}.{fingerprint}.{_SUFFIX}"
        return cls(created, pid, sequence, payload.items, payload.signal, fingerprint, name)

    @classmethod
    def parse(cls, name: str) -> Entry | None:
        """What ``name`` tells, None where it is not the name of a payload."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        created, pid, sequence, items, signal, fingerprint = match.groups()
        return cls(int(created), int(pid), int(sequence), int(items), cast(Signal, signal), fingerprint, name)


def ending(signal: Signal, fingerprint: str) -> str:
    """How the names of one signal's payloads for one destination end."""
    return f".{signal}.{fingerprint}.{_SUFFIX}"


def is_unfinished(name: str) -> bool:
    """Whether this is what `write` left behind when its process was killed."""
    return name.startswith(".") and _NAME.fullmatch(name[1:]) is not None


def pack(payload: Payload) -> bytes:
    """The content of the file that keeps ``payload``."""
    # The fastest level: it is most of what a put costs, and the time is the application's.
    rest = _FACTS.pack(payload.items, payload.created) + zlib.compress(payload.body, 1, _GZIP)
    return _HEADER.pack(_MAGIC, zlib.crc32(rest)) + rest


def unpack(content: bytes, signal: Signal) -> Payload:
    """The payload that `pack` wrote.

    Raises:
        Corrupt: It is not that, not all of it, or more than `LARGEST_BODY`.
    """
    try:
        magic, checksum = _HEADER.unpack_from(content)
        items, created = _FACTS.unpack_from(content, _HEADER.size)
        if magic != _MAGIC or zlib.crc32(memoryview(content)[_HEADER.size :]) != checksum:
            raise Corrupt("magic or checksum")
        inflate = zlib.decompressobj(_GZIP)
        body = inflate.decompress(memoryview(content)[_HEADER.size + _FACTS.size :], LARGEST_BODY + 1)
    except (struct.error, zlib.error) as error:
        raise Corrupt(str(error)) from error
    if not inflate.eof or inflate.unused_data or len(body) > LARGEST_BODY:
        raise Corrupt("length")
    return Payload(signal, body, items, created)


def read(path: Path, signal: Signal) -> Payload:
    """The payload kept at ``path``.

    Raises:
        Corrupt: There is something else.
        OSError: It is gone, or cannot be opened just now.
    """
    try:
        # Not blocking: a FIFO of that name would make us wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise Corrupt("not a regular file of ours")
            if status.st_size > _LARGEST_FILE:
                raise Corrupt("too long")
            content = bytearray()
            while len(content) <= _LARGEST_FILE and (chunk := os.read(descriptor, 1024 * 1024)):
                content += chunk
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _PASSING:
            raise
        raise Corrupt(str(error)) from error
    return unpack(bytes(content), signal)


def write(path: Path, content: bytes) -> None:
    """Have ``content`` at ``path``, whole or not at all, for this user's eyes only.

    Raises:
        OSError: It could not be written. Nothing is left of it.
    """
    hidden = path.with_name(f".{path.name}")
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.fchmod(descriptor, 0o600)  # a umask may have taken even our own right to read
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)
        hidden.rename(path)
    except BaseException:
        with suppress(OSError):
            hidden.unlink()
        raise
