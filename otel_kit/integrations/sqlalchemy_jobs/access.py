"""Our own way to the application's database: other connections than its pool's, short transactions, and a deadline.

Each piece of work runs on a thread made for it. A driver may hang for minutes in a connect that nobody answers, and an
async driver needs an event loop: neither is to be the caller's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from opentelemetry.instrumentation.utils import suppress_instrumentation
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from otel_kit.integrations.sqlalchemy_jobs import clocks, forks
from otel_kit.settings import ConfigurationError
from otel_kit.telemetry.context import silenced

T = TypeVar("T")

#: SQLite's virtual machine instructions between two looks at the clock, some 10 ms of them.
_INSTRUCTIONS: Final = 100_000
#: Seconds beyond the timeout in which the database gives up first, and says why.
_GRACE: Final = 1.0


class Access:
    """Connections of our own to the database of an engine.

    Args:
        engine: The application's, sync or async. Only its URL and its way of connecting are used (``connect_args``,
            ``creator``, ``do_connect`` listeners included); its pool is not touched.
        timeout: Seconds that one piece of work may take, statement and all.

    Raises:
        ConfigurationError: The engine's database is not supported, or lives in a single connection's memory.
    """

    def __init__(self, engine: Engine | AsyncEngine, timeout: float) -> None:
        sync = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        self.dialect: str = sync.dialect.name
        self.timeout = timeout
        clocks.require(self.dialect)
        if self.dialect == "sqlite" and _in_memory(sync):
            raise ConfigurationError("engine of an SQLite database in memory is not accepted; accepted: one in a file")
        self.url = sync.url
        self._source = sync
        self.is_async = isinstance(engine, AsyncEngine)
        self.after_fork()
        forks.follow(self)

    def after_fork(self) -> None:
        """Begin anew: a thread of the parent's may have been at work."""
        self._lock = threading.Lock()
        self._at_work: threading.Thread | None = None
        self._own: Engine | None = None

    def engine(self) -> Engine:
        """An engine without a pool: every connection is new, and closed after use."""
        if self._own is None:
            # The pool's own creator is the only place where connect_args, creator and listeners come together.
            connect = self._source.pool._invoke_creator  # noqa: SLF001
            options: dict[str, Any] = {"_is_async": True} if self.is_async else {}
            self._own = create_engine(self.url, creator=lambda: connect(None), poolclass=NullPool, **options)  # type: ignore[arg-type]
        return self._own

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a transaction that changes nothing and give what it gives.

        Raises:
            TimeoutError: It took longer than `timeout` seconds, or the work before it still hangs.
            Exception: What the database has to say.
        """
        return self.bounded(lambda: self._connected(lambda connection: self._transact(connection, work, writes=False)))

    def write(self, work: Callable[[Connection], T]) -> T:
        """The same for work that changes something; it is committed."""
        return self.bounded(lambda: self._connected(lambda connection: self._transact(connection, work, writes=True)))

    def _transact(self, connection: Connection, work: Callable[[Connection], T], *, writes: bool) -> T:
        with connection.begin() as transaction:
            limit(connection, self.dialect, self.timeout, writes=writes)
            result = work(connection)
            if not writes:
                transaction.rollback()
            return result

    def bounded(self, work: Callable[[], T]) -> T:
        """Run ``work`` on a thread of its own, without telemetry, and wait for it no longer than `timeout` and a second.

        Several callers wait for each other as long.
        """
        outcome: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                with suppress_instrumentation(), silenced():
                    outcome.append(work())
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                failure.append(error)

        late = f"the database has not answered within {self.timeout + _GRACE:.0f} s"
        if not self._lock.acquire(timeout=self.timeout + _GRACE):
            raise TimeoutError(late)
        try:
            # One that hangs in a connect may hang for ever: no second one joins it.
            if self._at_work is not None and self._at_work.is_alive():
                raise TimeoutError("the database has not answered the question before yet")
            self._at_work = thread = threading.Thread(target=run, name="otel-kit-database", daemon=True)
            thread.start()
            thread.join(self.timeout + _GRACE)
        finally:
            self._lock.release()
        if failure:
            raise failure[0]
        if not outcome:
            raise TimeoutError(late)
        return outcome[0]

    def _connected(self, work: Callable[[Connection], T]) -> T:
        if not self.is_async:
            with self.engine().connect() as connection:
                return work(connection)
        engine = AsyncEngine(self.engine())

        async def run() -> T:
            async with engine.connect() as connection:
                return await connection.run_sync(work)

        return asyncio.run(run())


def limit(connection: Connection, dialect: str, timeout: float, *, writes: bool = False) -> None:
    """Bound what the current transaction may take, in seconds, and set its time zone to UTC.

    For this transaction only, as far as the database can: behind a pooler such as PgBouncer the next one is somebody else's.
    """
    milliseconds = max(1, int(timeout * 1000))
    if dialect == "postgresql":
        connection.execute(
            text(
                "SELECT set_config('statement_timeout', :limit, true),"
                " set_config('TimeZone', 'UTC', true), set_config('transaction_read_only', :read_only, true)"
            ),
            {"limit": f"{milliseconds}ms", "read_only": "off" if writes else "on"},
        )
    elif dialect == "sqlite":
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {milliseconds}")
        connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
        _interrupt_sqlite(connection, timeout)
    else:
        connection.exec_driver_sql("SET time_zone = '+00:00'")
        seconds = f"max_statement_time = {timeout}" if dialect == "mariadb" else f"max_execution_time = {milliseconds}"
        connection.exec_driver_sql(f"SET SESSION {seconds}")


def _interrupt_sqlite(connection: Connection, timeout: float) -> None:
    deadline = time.monotonic() + timeout

    def is_over() -> bool:
        return time.monotonic() > deadline

    dbapi: Any = connection.connection.dbapi_connection
    if hasattr(dbapi, "run_async"):  # aiosqlite
        dbapi.run_async(lambda driver: driver.set_progress_handler(is_over, _INSTRUCTIONS))
    else:
        dbapi.set_progress_handler(is_over, _INSTRUCTIONS)


def _in_memory(engine: Engine) -> bool:
    database = engine.url.database
    return (
        database in (None, "", ":memory:") or "mode=memory" in str(database) or engine.url.query.get("mode") == "memory"
    )
