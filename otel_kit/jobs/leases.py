"""Lost jobs: every run is leased, and whoever lives records the runs of those who died.

A process that is killed tells nobody. So while it lives one thread of ours says so for each of its runs, in a place that other
processes see (`otel_kit.jobs.lease_store.LeaseStore`), and they record as `lost` what has not been renewed for a while:
span, event and count, as the process itself would have. Nothing of it happens on the application's threads.

At least once: a loss is recorded and delivered first, and forgotten by the store then. A claimer that is killed in between
leaves its claim to the next one. A process that was only cut off or stopped, and comes back, corrects what was said of it.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from opentelemetry import metrics, trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.trace import NonRecordingSpan

from otel_kit import catalogue
from otel_kit.guard import guard
from otel_kit.jobs.lease_store import Fate, Lease, LeaseStore, from_text
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import get_recorder
from otel_kit.jobs.running import Entry
from otel_kit.lifecycle import lifecycle
from otel_kit.settings import DEFAULT_LEASE_TTL, Settings, read
from otel_kit.telemetry.ids import chosen
from otel_kit.telemetry.redaction import Redactor

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Seconds that a run is left alone: most jobs are over by then and never cost a round trip.
YOUNG: Final = 0.1
#: Renewals in one life of a lease.
_RENEWALS: Final = 4
#: Leases that are sent in one call.
_BATCH: Final = 100
#: Dead runs that are claimed in one turn.
_CLAIMS: Final = 100
#: Ended runs that are remembered while the store does not answer.
_MOST_ENDED: Final = 10_000
#: Lives of a lease after which a loss counts as recorded although its telemetry is not delivered: it is kept by then.
_PATIENCE: Final = 2.0
#: What it takes to run a job again, as text; None where the job is not this framework's.
Payload = Callable[[Job], str | None]


class WorkerLost(Exception):  # noqa: N818 - a state of affairs, and the word that people look for
    """The process that ran a job has died, or is cut off from the place where it would say that it lives."""


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """What OTEL_KIT_LEASES and OTEL_KIT_LEASE_TTL say.

    Attributes:
        on: Whether runs are leased at all.
        url: A Redis of its own for leases; None where the broker's is to be used.
        ttl: Seconds that a lease lives without being renewed.
    """

    on: bool
    url: str | None
    ttl: float


_configured: tuple[Settings, Redactor] | None = None


def configure(settings: Settings, redactor: Redactor) -> None:
    """What `otel_kit.configure` was asked for, and what takes secrets out of leases."""
    global _configured
    _configured = (settings, redactor)


def lease_settings() -> LeaseSettings:
    """The settings in force: as configured, else as the environment has them."""
    settings = _configured[0] if _configured is not None else read({})
    url = None if settings.leases in ("on", "off") else settings.leases
    return LeaseSettings(settings.leases != "off", url, settings.lease_ttl)


class Keeper:
    """Leases this process's runs and claims those of dead ones. One per process: `keep`.

    Args:
        store: Where leases are.
        ttl: Seconds that a lease lives without being renewed; it is renewed four times in that.
    """

    def __init__(self, store: LeaseStore, ttl: float = DEFAULT_LEASE_TTL) -> None:
        self.ttl = ttl
        self.redactor = _configured[1] if _configured is not None else Redactor()
        self._payloads: dict[str, Payload | None] = {}
        self._reset(store)

    def _reset(self, store: LeaseStore) -> None:
        self._store = store
        self._owner = secrets.token_hex(12)
        self._where, self._service = "", ""
        # The leases of the runs that were there at the last look, by the registry's own objects.
        self._known: dict[int, tuple[Entry, str, Lease]] = {}
        # All that the store may have of ours, and those of them of which it has said so.
        self._held: dict[str, Lease] = {}
        self._confirmed: set[str] = set()
        self._ended: dict[str, Lease] = {}
        self._recorded: dict[str, float] = {}
        self._turn_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._told = False
        self._stopped = False
        self._failing_since: float | None = None
        self._away = ""

    # What happens to the process

    def start(self) -> None:
        """Begin, if it has not."""
        changes = get_recorder().running.on_change
        if self._changed not in changes:
            changes.append(self._changed)
        self._ensure_thread()

    def accept(self, store: LeaseStore, framework: str, payload: Payload | None) -> None:
        """Another part of this process keeps its runs here too."""
        if self._thread is None and not self._held:
            self._store = store  # a forked child, which says for itself where
        if framework:
            self._payloads[framework] = payload

    def in_child(self) -> None:
        """A forked child runs nothing yet: no lease, no thread, and another name."""
        self._store.renew()  # the parent's thread may have been in the middle of it
        self._reset(self._store)
        changes = get_recorder().running.on_change
        if self._changed not in changes:  # whoever prepares jobs may have dropped it
            changes.append(self._changed)

    def renew_thread(self) -> None:
        """Threads and queues have been replaced by others, greenlets for instance."""
        running = self._thread is not None
        self._turn_lock = threading.Lock()
        self._store.renew()
        self._asked, self._told, self._thread = queue.SimpleQueue(), False, None
        if running:
            self._ensure_thread()

    def flush(self, timeout: float) -> bool | None:
        """At the process's end its leases are given up at once; before that there is nothing to do."""
        if not lifecycle.closing or self._stopped:
            return None
        self._stopped = True
        self._asked.put(None)
        if not self._turn_lock.acquire(timeout=timeout):
            return False
        try:
            self._ended |= self._held
            self._held.clear()
            return self._tell(self._release) if self._ended else None
        finally:
            self._turn_lock.release()

    def close(self) -> None:
        """After the last flush: what was recorded is delivered, or kept."""
        recorded = list(self._recorded)
        if recorded and self._tell(lambda: self._store.settle(self._owner, recorded)):
            self._recorded.clear()

    def _changed(self) -> None:
        # On the application's thread. Only the first of a burst costs anything.
        if self._told or self._stopped:
            return
        self._told = True
        self._asked.put(None)
        if self._thread is None:
            with guard("starting to keep leases"):
                self._ensure_thread()

    def _ensure_thread(self) -> None:
        if self._thread is None and not self._stopped:
            self._thread = threading.Thread(
                target=self._run, args=(self._asked,), name="otel-kit-lease-keeper", daemon=True
            )
            self._thread.start()

    # The thread

    def _run(self, asked: queue.SimpleQueue[None]) -> None:
        self._where, self._service = _who()
        next_renewal = time.monotonic()
        next_look: float | None = None
        while not self._stopped and asked is self._asked:
            now = time.monotonic()
            due = next_renewal if next_look is None else min(next_look, next_renewal)
            if due > now:
                try:
                    asked.get(timeout=due - now)
                except queue.Empty:
                    self._stood_still(time.monotonic() - due)
                else:
                    # Not at once: a job that is over in a moment is never looked at, nor are a thousand of them.
                    next_look = next_look or time.monotonic() + YOUNG
                continue
            renewing = now >= next_renewal
            if renewing:
                # Not all processes of a host at the same moment.
                next_renewal = now + self.ttl / _RENEWALS * random.uniform(0.9, 1.0)
            next_look = None
            with guard("keeping leases"):
                if self._turn(renewing=renewing):
                    next_look = time.monotonic() + YOUNG
                self._settle()

    def _stood_still(self, late: float) -> None:
        if late > self.ttl / 2:
            self._away = f"its process stood still for {late:.0f} s"

    def _turn(self, *, renewing: bool) -> bool:
        """Bring the store up to date with what runs now.

        Returns:
            Whether there are runs that are still too young.
        """
        self._told = False  # before looking: what changes from here on asks for another look
        now = time.time()
        running: dict[str, Lease] = {}
        seen: dict[int, tuple[Entry, str, Lease]] = {}
        young = False
        for entry in get_recorder().running.snapshot():
            # A clock that was set back makes a run look as if it came from the future: that one is old enough.
            if 0 <= now - entry.started_at < YOUNG:
                young = True
                continue
            known = self._known.get(id(entry))
            if known is None or known[0] is not entry:
                lease = self._lease(entry)
                known = (entry, lease.member, lease)
            seen[id(entry)] = known
            running[known[1]] = known[2]
        self._known = seen
        with self._turn_lock:
            if self._stopped:
                return False
            for member in [member for member in self._held if member not in running]:
                self._ended[member] = self._held.pop(member)
                self._confirmed.discard(member)
            while len(self._ended) > _MOST_ENDED:
                del self._ended[next(iter(self._ended))]
            new = {member: lease for member, lease in running.items() if member not in self._held}
            # Before it is sent: what the store may have is to be released, also where its answer was not heard.
            self._held.update(new)
            # A store that does not answer is not asked ten times a second.
            if renewing or self._failing_since is None:
                self._tell(lambda: self._exchange(self._held if renewing else new, renewing=renewing))
        return young

    def _exchange(self, wanted: Mapping[str, Lease], *, renewing: bool) -> None:
        self._hold(wanted)
        self._release()
        if renewing:
            self._claim()
            self._away = ""

    def _hold(self, wanted: Mapping[str, Lease]) -> None:
        told = {
            member: "" if member in self._confirmed else lease.to_text(self.redactor)
            for member, lease in wanted.items()
        }
        for batch in _batches(list(told.items())):
            for (member, _details), fate in zip(batch, self._store.hold(batch, self.ttl), strict=True):
                if fate is Fate.UNKNOWN:
                    self._confirmed.discard(member)  # it has lost its memory, or is full: told in full the next time
                    continue
                self._confirmed.add(member)
                self._correct(wanted[member], fate)

    def _release(self) -> None:
        for batch in _batches(list(self._ended)):
            for member, fate in zip(batch, self._store.release(batch), strict=True):
                self._correct(self._ended.pop(member), fate)

    def _claim(self) -> None:
        for member, details in self._store.claim(self._owner, self._service, _CLAIMS, self.ttl):
            # Whatever goes wrong here would go wrong again: it counts as recorded, and the guard has said so.
            self._recorded[member] = time.monotonic()
            with guard("recording a lost job"):
                record_lost(from_text(details))

    def _settle(self) -> None:
        """Have the store forget what is recorded. Recorded is not delivered: who is killed now leaves its claim to another."""
        if not self._recorded or self._stopped:
            return
        # Without the lock: what ends this process flushes too, and waits for it. Short enough that nobody misses a turn.
        delivered = lifecycle.flush(self.ttl / (2 * _RENEWALS))
        now = time.monotonic()
        with self._turn_lock:
            done = [m for m, since in self._recorded.items() if delivered or now - since > _PATIENCE * self.ttl]
            for batch in _batches(done):
                if self._tell(functools.partial(self._store.settle, self._owner, batch)):
                    for member in batch:
                        self._recorded.pop(member, None)

    def _correct(self, lease: Lease, fate: Fate) -> None:
        if fate not in (Fate.LOST, Fate.REQUEUED):
            return
        why = self._away or "its lease was not renewed in time"
        with guard("correcting a loss"):
            sentence = f"Job {lease.job.name} was taken for lost and is not: {why}"
            if fate is Fate.REQUEUED:
                sentence += "; it was requeued in the meantime and runs twice"
            recorder = get_recorder()
            span = lease.context
            recorder.emit(
                catalogue.JOB_RECOVERED,
                sentence,
                lease.job,
                {catalogue.JOB_RECOVERY: "returned"},
                severity=SeverityNumber.WARN,
                context=trace.set_span_in_context(NonRecordingSpan(span)) if span is not None else None,
            )
            recorder.tally.recovered(lease.job, "returned")

    def _tell(self, talk: Callable[[], None]) -> bool:
        """Talk to the store. A store that does not answer is said once, and once that it does again."""
        began = time.monotonic()
        if self._failing_since is not None:
            self._away = f"its process did not reach {self._store.name} for {began - self._failing_since:.0f} s"
        try:
            talk()
        except Exception as error:  # noqa: BLE001 - whatever its client raises
            if self._failing_since is None:
                self._failing_since = began
                _logger.disabled = False  # dictConfig switches off every logger that it does not name
                _logger.warning(
                    "otel-kit: leases of jobs cannot be kept in %s (%s: %s); jobs run on, and one that is lost meanwhile "
                    "is noticed late; this is said once per outage",
                    self._store.name, type(error).__name__, error,
                )  # fmt: skip
            return False
        if self._failing_since is not None:
            _logger.warning("otel-kit: leases are kept again after %.0f s", time.monotonic() - self._failing_since)
            self._failing_since = None
        return True

    def _lease(self, entry: Entry) -> Lease:
        job = entry.job
        frameworks = list(self._payloads.items())
        framework = frameworks[0][0] if len(frameworks) == 1 else ""
        made = Lease(job, entry.started_at, self._owner, self._service, self._where, entry.context, framework)
        if not job.recoverable:
            return made
        for name, payload in frameworks:
            if payload is None:
                continue
            with guard(f"asking {name} how to run a job again"):
                text = payload(job)
                if text is not None:
                    return replace(made, framework=name, payload=text)
        return made


def record_lost(lease: Lease) -> None:
    """Record a run whose process is dead: span with the very ids that the run had, event, count."""
    recorder = get_recorder()
    error = WorkerLost(f"{lease.where or 'its process'} is dead: it has not renewed its lease in time")
    try:
        recorder.tally.lost(lease.job, error)
    finally:
        with chosen(lease.context):
            recorder.died(lease.job, Outcome.LOST, lease.started_at, error)


def _batches(items: list[_T]) -> list[list[_T]]:
    return [items[first : first + _BATCH] for first in range(0, len(items), _BATCH)]


def _who() -> tuple[str, str]:
    attributes = getattr(getattr(trace.get_tracer_provider(), "resource", None), "attributes", {})
    name = str(attributes.get(catalogue.SERVICE_NAME, ""))
    named = (catalogue.SERVICE_NAMESPACE, catalogue.SERVICE_NAME, catalogue.ENVIRONMENT)
    service = "/".join(str(attributes.get(each, "")) for each in named)
    host = attributes.get(catalogue.HOST_NAME) or socket.gethostname()
    return f"process {os.getpid()} of {name or 'a service'} on {host}", service


_keeper: Keeper | None = None


def keep(
    store: LeaseStore | None, *, framework: str = "", payload: Payload | None = None, ttl: float | None = None
) -> None:
    """Lease every run of this process from now on, and record the runs of dead processes. Called when a worker is ready.

    The first store counts; a process has one. Nothing happens without one, where OTEL_KIT_LEASES=off, and where no metrics
    are made: what such a process claimed would vanish.

    Args:
        store: Where leases are kept.
        framework: What runs the jobs, where it can be told to run a job again.
        payload: What that takes beyond the job's id, asked once for each recoverable job.
        ttl: Seconds that a lease lives without being renewed; OTEL_KIT_LEASE_TTL or 20 when left out.
    """
    global _keeper
    settings = lease_settings()
    if store is None or not settings.on or not isinstance(metrics.get_meter_provider(), MeterProvider):
        return
    if _keeper is None:
        _keeper = Keeper(store, ttl or settings.ttl)
        lifecycle.on_child("leases", _keeper.in_child)
        lifecycle.on_flush("leases", _keeper.flush)
        lifecycle.on_renewal(_keeper.renew_thread)
        lifecycle.on_close(_keeper.close)
    _keeper.accept(store, framework, payload)
    _keeper.start()
