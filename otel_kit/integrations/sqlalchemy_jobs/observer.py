"""Depth, age and losses of the queues in one table, from one SELECT for all of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from otel_kit import catalogue
from otel_kit.integrations.sqlalchemy_jobs import forks, statements
from otel_kit.integrations.sqlalchemy_jobs.access import Access
from otel_kit.integrations.sqlalchemy_jobs.layout import BoundTable, JobTable
from otel_kit.integrations.sqlalchemy_jobs.silence import Losses
from otel_kit.integrations.sqlalchemy_jobs.statements import Group, SilentRow
from otel_kit.jobs.queues import SERVICE, QueueState, ReporterLease, reporter, watch_queue
from otel_kit.telemetry.apart import apart

_logger = logging.getLogger(__name__)

#: Queues of one table that are reported: each is an identity of its own in the metrics.
MAX_QUEUES: Final = 200
#: Silent rows that are looked at in one reading; the next one goes on from there.
_MOST_SILENT: Final = 1000
#: A reading that takes longer (seconds) is worth a word about an index.
_SLOW: Final = 0.5
#: Seconds for which queues of one table share a reading, at most.
_SHARED: Final = 5.0
_RUNNING: Final = ("reserved", "overdue", "silent")


@dataclass(frozen=True, slots=True)
class TableState(QueueState):
    """A queue in a table as it is now.

    Attributes:
        overdue: Running rows that have been running longer than ``max_runtime``; part of ``reserved``.
        silent: Running rows whose heartbeat is too old; part of ``reserved``.
        oldest_started_at: When the oldest running row was claimed (unix seconds), where a column says so.
    """

    overdue: int = 0
    silent: int = 0
    oldest_started_at: float | None = None

    @property
    def stuck(self) -> int:
        """Rows that somebody ought to look at: overdue or silent."""
        return self.overdue + self.silent


class TableObserver:
    """Watches one table. Made by `otel_kit.integrations.sqlalchemy_jobs.observe_table`.

    Attributes:
        system: The database's name, as `messaging.system` has it.
        most: Rows of each state that are counted at most.
    """

    def __init__(
        self, access: Access, layout: JobTable, system: str, most: int, lease: ReporterLease | None, lost_within: float
    ) -> None:
        self.system = system
        self.most = most
        self._access = access
        self._layout = layout
        self._bound: BoundTable | None = None
        self._losses = Losses(layout, system, lost_within)
        self._lease = None if lease is None else _SharedLease(lease, f"{system}/{layout.label}")
        self._states: dict[str, TableState] = {}
        self._read_at = float("-inf")
        self._failure: Exception | None = None
        self._watched: set[str] = set()
        self._said: set[str] = set()
        self.after_fork()
        forks.follow(self)

    def after_fork(self) -> None:
        """Begin anew: the lock may have been held."""
        self._lock = threading.RLock()

    def watch(self) -> None:
        """Report from now on, unless another process does."""
        self._watch(self._layout.known_queues)

    def read(self) -> Mapping[str, TableState]:
        """Look now, whoever reports: the state of every queue, by name. Waits for the database.

        Raises:
            TimeoutError: The database did not answer in time.
            Exception: What the database says.
        """
        groups = self._access.read(self._groups)
        states = self._as_states(groups)
        for name, count in _by_kind(groups).items():
            if count >= self.most:
                self._say(name, f"table {self._layout.label} has {self.most} {name} rows or more; no more are counted")
        return states

    def state(self, queue: str) -> TableState:
        """One queue's state, from a reading that all queues of the table share for a moment. Records what it finds lost."""
        with self._lock:
            if time.monotonic() - self._read_at > min(_SHARED, reporter.interval / 2):
                self._failure = None
                try:
                    self._states = dict(self.read())
                    self._report_losses()
                except Exception as error:  # noqa: BLE001 - raised below, for each queue of the table
                    self._failure = error
                self._read_at = time.monotonic()
                self._watch(self._states)
            if self._failure is not None:
                # Two hundred queues do not wait for the same timeout one after the other.
                raise self._failure
            state = self._states.get(queue, TableState(0))
        self._report_stuck(queue, state)
        return state

    def _report_stuck(self, queue: str, state: TableState) -> None:
        if self._layout.max_runtime is None and self._layout.heartbeat_timeout is None:
            return
        labels = {
            catalogue.MESSAGING_SYSTEM: self.system,
            catalogue.MESSAGING_DESTINATION: queue,
            catalogue.JOB_STATE: "stuck",
        }
        apart.export(SERVICE, f"queue:{self.system}/{queue}", [(catalogue.QUEUE_DEPTH, float(state.stuck), labels)])

    def _report_losses(self) -> None:
        if any(state.silent for state in self._states.values()):
            self._losses.report(self._access.read(self._silent))

    def _groups(self, connection: Connection) -> list[Group]:
        bound, began = self._bind(connection), time.monotonic()
        groups = statements.groups(bound, self._access.dialect, self.most, connection)
        took = time.monotonic() - began
        if took > _SLOW:
            self._say(
                "slow",
                f"counting the rows of table {self._layout.label} took {took:.1f} s: without an index that begins with the "
                "status it goes through all of them",
            )
        return groups

    def _silent(self, connection: Connection) -> list[SilentRow]:
        since = self._losses.heard_since
        return statements.silent_rows(
            self._bind(connection), self._access.dialect, _MOST_SILENT, connection, since=since
        )

    def _bind(self, connection: Connection) -> BoundTable:
        if self._bound is None:
            self._bound = self._layout.bind(self._layout.reflected(connection))
        return self._bound

    def _as_states(self, groups: Iterable[Group]) -> dict[str, TableState]:
        by_queue: dict[str, dict[str, Group]] = {queue: {} for queue in self._layout.known_queues}
        # A queue that was seen once goes on with its zeros.
        by_queue |= {queue: {} for queue in self._watched}
        for group in groups:
            by_queue.setdefault(group.queue, {})[group.state] = group
        return {queue: _state(found) for queue, found in by_queue.items()}

    def _watch(self, queues: Iterable[str]) -> None:
        for queue in queues:
            if queue in self._watched:
                continue
            if len(self._watched) >= MAX_QUEUES:
                self._say(
                    "queues", f"table {self._layout.label} has more than {MAX_QUEUES} queues; no more are reported"
                )
                return
            self._watched.add(queue)
            watch_queue(TableQueue(self, queue), self._lease)

    def _say(self, what: str, sentence: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _logger.warning("otel-kit: %s; this is said once", sentence)


class TableQueue:
    """One queue of a table, as the reporter reads it."""

    def __init__(self, observer: TableObserver, name: str) -> None:
        self.system = observer.system
        self.name = name
        self._observer = observer

    def read(self) -> QueueState:
        """Its state."""
        return self._observer.state(self.name)


class _SharedLease:
    """One lease for all queues of a table, asked once for all of them."""

    def __init__(self, lease: ReporterLease, key: str) -> None:
        self._lease = lease
        self._key = f"otel-kit:reporter:{key}"
        self._asked_at = float("-inf")
        self._ours = False

    def hold(self, key: str, token: str, ttl: float) -> bool:  # noqa: ARG002 - one key for all
        now = time.monotonic()
        if now - self._asked_at > min(_SHARED, reporter.interval / 2):
            self._asked_at, self._ours = now, False
            self._ours = self._lease.hold(self._key, token, ttl)
        return self._ours


def _state(groups: Mapping[str, Group]) -> TableState:
    def count(state: str) -> int:
        return groups[state].count if state in groups else 0

    started = [group.since for state in _RUNNING if (group := groups.get(state)) and group.since is not None]
    ready = groups.get("ready")
    now = next((group.now for group in groups.values()), 0.0)
    # The database's clock decides what is due; ages are told by ours.
    ahead = time.time() - now
    return TableState(
        ready=count("ready"),
        scheduled=count("scheduled"),
        reserved=sum(count(state) for state in _RUNNING),
        dead=count("dead"),
        oldest_ready_at=None if ready is None or ready.since is None else ready.since + ahead,
        overdue=count("overdue"),
        silent=count("silent"),
        oldest_started_at=min(started) + ahead if started else None,
    )


def _by_kind(groups: Iterable[Group]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for group in groups:
        kind = "running" if group.state in _RUNNING else group.state
        kinds[kind] = kinds.get(kind, 0) + group.count
    return kinds
