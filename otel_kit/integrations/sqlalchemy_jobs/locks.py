"""Who reports a table: a lock that its holder's death sets free, and that needs nothing in the application's schema."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, text

from otel_kit.integrations.sqlalchemy_jobs import forks
from otel_kit.integrations.sqlalchemy_jobs.access import Access
from otel_kit.integrations.sqlalchemy_jobs.session import Session
from otel_kit.jobs.queues import ReporterLease

#: Seconds of silence after which PostgreSQL looks whether the holder's host is still there, and between looks.
_KEEPALIVE: Final = 10


def lease_of(access: Access) -> ReporterLease:
    """What decides between the processes that watch tables of this database."""
    if access.dialect == "sqlite":
        return FileLease(Path(str(access.url.database)).absolute())
    return SessionLease(access)


class FileLease:
    """flock on files beside an SQLite database: the kernel lets go of them when the process ends, however it ends.

    Args:
        database: The database's file. Without a writable directory there is no lock, and every process reports.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._held: dict[str, int] = {}
        forks.follow(self)

    def hold(self, key: str, token: str, ttl: float) -> bool:  # noqa: ARG002 - the lock lives as long as the process
        """Take the lock, or see that it is ours."""
        if key in self._held:
            return True
        name = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:8]
        path = self._database.with_name(f"{self._database.name}.otel-kit-{name}.lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._held[key] = descriptor
        return True

    def release(self) -> None:
        """Let go of all of them."""
        while self._held:
            _key, descriptor = self._held.popitem()
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def after_fork(self) -> None:
        """Leave them to the parent: closed and not unlocked, they last until the last copy is closed."""
        self.release()


class SessionLease:
    """Advisory locks of one database session: PostgreSQL's ``pg_try_advisory_lock``, MySQL's ``GET_LOCK``.

    The holder keeps one connection open, outside any transaction, and asks every time whether it still answers; the others
    connect, ask and leave. Behind a pooler that gives a session to many clients (PgBouncer in transaction mode) such locks
    mean nothing: choose another lease there.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._forget()
        forks.follow(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._held: set[str] = set()

    def hold(self, key: str, token: str, ttl: float) -> bool:  # noqa: ARG002 - the lock lives as long as the session
        """Take the lock, or see that it is ours still. Raises what the database says."""
        with self._lock:
            try:
                return self._hold(key)
            except BaseException:
                self._drop()
                raise

    def release(self) -> None:
        """Close the session, and with it let go of everything."""
        with self._lock:
            self._drop()

    def _hold(self, key: str) -> bool:
        session = self._session = self._session or Session(self._access)
        if key in self._held:
            session.run(lambda connection: connection.execute(text("SELECT 1")).scalar())
            return True
        if session.run(lambda connection: _try(connection, self._access.dialect, key)):
            self._held.add(key)
            return True
        if not self._held:
            self._drop()
        return False

    def _drop(self) -> None:
        session, self._session = self._session, None
        self._held.clear()
        if session is not None:
            with contextlib.suppress(Exception):
                session.close()

    def after_fork(self) -> None:
        """Leave the session to the parent."""
        session = self._session
        self._forget()
        if session is not None:
            session.leave_to_parent()


def _try(connection: Connection, dialect: str, key: str) -> bool:
    digest = hashlib.sha256(key.encode("utf-8", "replace")).digest()
    if dialect == "postgresql":
        connection.execute(
            text(
                "SELECT set_config('tcp_keepalives_idle', :seconds, false),"
                " set_config('tcp_keepalives_interval', :seconds, false), set_config('tcp_keepalives_count', '3', false),"
                " set_config('application_name', 'otel-kit', false)"
            ),
            {"seconds": str(_KEEPALIVE)},
        )
        number = int.from_bytes(digest[:8], signed=True)
        return bool(connection.execute(text("SELECT pg_try_advisory_lock(:number)"), {"number": number}).scalar())
    name = f"otel-kit-{digest.hex()[:32]}"
    return connection.execute(text("SELECT GET_LOCK(:name, 0)"), {"name": name}).scalar() == 1
