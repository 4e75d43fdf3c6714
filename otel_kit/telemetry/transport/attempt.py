"""One attempt over HTTP as two threads see it: the one that does it, and the one that waits no longer than it may."""

from __future__ import annotations

import io
import socket
import threading
import time
from contextvars import ContextVar
from http.client import HTTPResponse
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.poolmanager import pool_classes_by_scheme

from otel_kit.telemetry.payload import Answer

#: The attempt that the running thread makes.
current: ContextVar[Attempt | None] = ContextVar("otel_kit_attempt", default=None)


class Attempt:
    """What is known of one attempt so far.

    Args:
        limit: Seconds that it may take.

    Attributes:
        deadline: Monotonic seconds until which it may read, where nobody else watches the time.
        over: Set when there is no more to wait for.
        answer: What it came to; None while it runs, and for good once it is abandoned.
        head: Status and headers of the response: from here on the verdict is certain.
        body: What has come of the response's body.
        connected: A connection stood.
        sent: The whole request was handed to a socket, at this try or at the one before.
        doubtful: It was at the one before: whoever answers now may have it twice.
        reused: The connection had served an earlier attempt.
        seen: A byte of an answer has come.
        abandoned: Nobody waits any more; nothing may be sent from here on.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.deadline: float | None = None
        self.over = threading.Event()
        self.answer: Answer | None = None
        self.head: tuple[int, Any] | None = None
        self.body = b""
        self.connected = False
        self.sent = False
        self.doubtful = False
        self.reused = False
        self.seen = False
        self.abandoned = False
        self._connections: list[_Connection] = []

    def uses(self, connection: _Connection) -> None:
        """Note a connection, which is cut when the attempt is abandoned.

        Raises:
            ConnectionAbortedError: It is abandoned already: what a stuck resolver held up must not be sent late.
        """
        self._connections.append(connection)
        if self.abandoned:
            raise ConnectionAbortedError("abandoned")

    def abandon(self) -> None:
        """Let it go, from any thread: its connection is cut, so the thread that does it comes back soon."""
        self.abandoned = True
        for connection in list(self._connections):
            connection.cut()
        self.over.set()

    def settle(self) -> None:
        """Its connections serve others now, or are closed."""
        for connection in self._connections:
            connection.settle()


class _Punctual(io.RawIOBase):
    """Reads from a socket until a deadline, and not so long for each read."""

    def __init__(self, source: Any, connection: Any, deadline: float) -> None:
        super().__init__()
        self._source = source
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(left)
        read: int | None = self._source.readinto(buffer)
        return read

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


class _Response(HTTPResponse):
    """Tells the attempt when the first byte of an answer is there."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        attempt = current.get()
        if attempt is not None and attempt.deadline is not None:
            self.fp = io.BufferedReader(_Punctual(self.fp.detach(), sock, attempt.deadline))

    def begin(self) -> None:
        attempt = current.get()
        if attempt is not None and self.fp.peek(1):
            attempt.seen = True
        super().begin()


class _Connection(HTTPConnection):
    """Tells the attempt how far it is, and can be cut from another thread.

    Cutting is shutdown(2) through a duplicate of the descriptor. That reaches the connection wherever the first descriptor
    has gone (TLS wraps it away), and, other than ``SSLSocket.shutdown``, it leaves the TLS layer in place: nothing can be
    written in the clear by a thread that is just sending.
    """

    response_class = _Response
    _handle: socket.socket | None = None
    _busy = False

    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        self.forget()
        self._handle = connected.dup()
        attempt = current.get()
        if attempt is not None:
            self._busy = True
            try:
                attempt.uses(self)
            except ConnectionAbortedError:
                connected.close()
                raise
        return connected

    def connect(self) -> None:
        attempt = current.get()
        if attempt is not None:
            attempt.reused = False
        super().connect()
        if attempt is not None:
            attempt.connected = True

    def request(self, *args: Any, **kwargs: Any) -> None:
        attempt = current.get()
        if attempt is None:
            return super().request(*args, **kwargs)
        if not self._busy:
            # Not connected for this attempt: it has served another.
            self._busy = attempt.reused = self.sock is not None
        attempt.connected, attempt.seen = self.sock is not None, False
        attempt.uses(self)
        super().request(*args, **kwargs)
        attempt.sent = True
        return None

    def close(self) -> None:
        super().close()
        # http.client closes before the body is read where the receiver said "Connection: close".
        if not self._busy:
            self.forget()

    def cut(self) -> None:
        """End it for both sides; whoever reads or writes comes back."""
        handle = self._handle
        if handle is not None:
            try:
                handle.shutdown(socket.SHUT_RDWR)
            except OSError:  # not connected any more
                return

    def settle(self) -> None:
        """The attempt is over."""
        self._busy = False
        if self.sock is None:
            self.forget()

    def forget(self) -> None:
        """Give the duplicate back."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()


class _SecureConnection(_Connection, HTTPSConnection):
    """The same over TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class WatchedAdapter(HTTPAdapter):
    """Makes connections that an attempt can follow and cut, to a receiver or to an HTTP proxy before it."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        self._watch(manager)
        return manager

    @staticmethod
    def _watch(manager: Any) -> None:
        if manager.pool_classes_by_scheme == pool_classes_by_scheme:  # SOCKS has classes of its own
            manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
