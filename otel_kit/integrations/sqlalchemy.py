"""SQLAlchemy: every engine in the process, sync and async, however early it was created.

Upstream wraps `create_engine`, so it misses engines that exist and modules that imported the function before, and it declines
SQLAlchemy 2.1. Every connection passes an event of the class `Engine`: there each engine gets upstream's tracer, once.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from pathlib import PurePath
from typing import Any
from weakref import WeakSet

from opentelemetry import trace
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.metrics import NoOpMeter

from otel_kit._version import __version__
from otel_kit.guard import guard
from otel_kit.integrations.takeover import Takeover


class SQLAlchemyInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments SQLAlchemy engines with upstream's tracer. Stands in for upstream's loader."""

    _takeover = Takeover("opentelemetry.instrumentation.sqlalchemy", "SQLAlchemyInstrumentor")
    _traced: WeakSet[Any]
    _lock: threading.Lock

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("sqlalchemy >= 2.0, < 2.2",)

    def _instrument(self, **_kwargs: Any) -> None:
        from opentelemetry.instrumentation.sqlalchemy.engine import EngineTracer
        from sqlalchemy import Engine, event

        self._takeover.begin()
        self._traced, self._lock = WeakSet(), threading.Lock()
        self._tracer = trace.get_tracer("otel_kit.sqlalchemy", __version__)

        class Tracer(EngineTracer):  # type: ignore[misc]
            """Names a file database by its file; the folder before it would make a name of every deployment."""

            def _operation_name(self, db_name: Any, statement: Any) -> Any:
                return super()._operation_name(
                    PurePath(db_name).name if isinstance(db_name, str) else db_name, statement
                )

        self._engine_tracer = Tracer
        # Upstream's pool counter has a name from before the conventions; nothing of ours reads it.
        self._no_usage = NoOpMeter("otel_kit.sqlalchemy").create_up_down_counter("db.client.connections.usage")
        event.listen(Engine, "engine_connect", self._connected)

    def _uninstrument(self, **_kwargs: Any) -> None:
        from sqlalchemy import Engine, event

        event.remove(Engine, "engine_connect", self._connected)
        self._engine_tracer.remove_all_event_listeners()
        self._takeover.end()

    def _connected(self, connection: Any) -> None:
        # `engine.execution_options()` makes a view of an engine, which hears its events too.
        engine = getattr(connection.engine, "_proxied", connection.engine)
        if engine in self._traced:
            return
        with guard("sqlalchemy: tracing an engine"), self._lock:
            if engine not in self._traced:
                self._traced.add(engine)
                self._engine_tracer(self._tracer, engine, self._no_usage)
