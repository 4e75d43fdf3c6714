"""A queue in a table of PostgreSQL: a small worker loop with FOR UPDATE SKIP LOCKED."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg

from tests.frameworks.adapter import Framework


class SqlTable(Framework):
    """One worker of one slot."""

    name = "sql-table"
    title = "SQL table"
    app = "sql_table"
    system = "postgresql"
    broker = "postgres"
    # The job is in the worker's own process; another one sees that its heartbeat has stopped.
    watchers = True

    def environment(self) -> Mapping[str, str]:
        # The application uses no library that is instrumented: its producers start in half the time.
        return {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"}

    def command(self) -> Sequence[str]:
        return [self.python(), "app.py"]

    def ready(self, output: str) -> bool:
        return "ready" in output

    def poison(self, broker: str) -> None:
        """A row whose payload is no JSON."""
        with psycopg.connect(broker.format("")) as connection:
            connection.execute(
                "INSERT INTO jobs (name, payload, carrier) VALUES ('unreadable', '{no json', '{no json')"
            )


FRAMEWORKS = [SqlTable()]
