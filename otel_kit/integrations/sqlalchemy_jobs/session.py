"""A database session of our own that lasts."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from otel_kit.integrations.sqlalchemy_jobs.access import Access

T = TypeVar("T")

_abandoned: list[Session] = []


class Session:
    """One connection of our own that stays open, in autocommit: between two pieces of work no transaction is open.

    Its work is done on the threads that its `Access` bounds.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._loop = asyncio.new_event_loop() if access.is_async else None
        self._connection: Any = None

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on it. Raises what the database says, and TimeoutError."""
        return self._access.bounded(lambda: self._run(work))

    def _run(self, work: Callable[[Connection], T]) -> T:
        if self._loop is None:
            if self._connection is None:
                self._connection = self._access.engine().execution_options(isolation_level="AUTOCOMMIT").connect()
            return work(self._connection)
        return self._loop.run_until_complete(self._run_async(work))

    async def _run_async(self, work: Callable[[Connection], T]) -> T:
        if self._connection is None:
            engine = AsyncEngine(self._access.engine()).execution_options(isolation_level="AUTOCOMMIT")
            self._connection = await engine.connect()
        found: T = await self._connection.run_sync(work)
        return found

    def close(self) -> None:
        """Close the connection."""
        self._access.bounded(self._close)

    def _close(self) -> None:
        if self._loop is None:
            if self._connection is not None:
                self._connection.close()
            return
        if self._connection is not None:
            self._loop.run_until_complete(self._connection.close())
        self._loop.close()

    def leave_to_parent(self) -> None:
        """In a forked child: close our copy of the socket and say nothing on it, since the session is the parent's.

        While a copy is open anywhere the server takes the holder for alive.
        """
        _abandoned.append(self)  # never collected: some drivers say goodbye to the server then
        with contextlib.suppress(Exception):
            connection = self._connection if self._loop is None else self._connection.sync_connection
            driver = connection.connection.driver_connection
            transport = getattr(driver, "_transport", None)  # asyncpg
            os.close(driver.fileno() if transport is None else transport.get_extra_info("socket").fileno())
