"""A lease: the record that a run is alive, kept where other processes see it. What it says, and what a store of leases does."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Protocol

from opentelemetry.trace import SpanContext, TraceFlags

from otel_kit import catalogue
from otel_kit.jobs.model import Job, Trigger
from otel_kit.telemetry.limits import cut
from otel_kit.telemetry.redaction import Redactor

#: Between the parts of a member; no name that is fit for a terminal has it.
_SEPARATOR: Final = "\x1f"
#: Characters of an id that are kept as they are; of a longer one its hash.
_LONGEST_ID: Final = 200
#: Characters of an id in a record. A job with a longer one cannot be told to run again.
_LONGEST_STORED_ID: Final = 1000
_LONGEST_TEXT: Final = 300
#: Characters of one header in a record.
_LONGEST_HEADER: Final = 2048
#: Bytes of what it takes to run a job again; a job with more cannot be recovered from its lease.
LARGEST_PAYLOAD: Final = 64 * 1024
#: Hex digits and dashes hold no secret, and a run of digits that looks like a card number must not be taken out of an id.
_TRACE: Final = re.compile(r"[0-9a-f-]{1,64}")


class Fate(IntEnum):
    """What a store says of a lease that its owner asks for."""

    UNKNOWN = 0
    """It is not there, and its details have to be told (again)."""
    HELD = 1
    """It is the owner's."""
    LOST = 2
    """It was given up for dead in the meantime. Now it is the owner's again."""
    REQUEUED = 3
    """As `LOST`, and somebody has had the job run again."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One run, and where it runs.

    Attributes:
        job: What runs; its carrier is redacted once the lease has been stored.
        started_at: Unix seconds.
        owner: The process, by an id that no other process ever has.
        service: Namespace, name and environment of the service: its own processes claim its dead runs first.
        where: The process in words: id, host, service.
        context: The run's span, where its process knows it.
        framework: What runs the job (``rq``, ``celery`` ...), ``""`` where it cannot be told to run it again.
        payload: What the framework needs to run it again; None unless the job is recoverable.
    """

    job: Job
    started_at: float
    owner: str
    service: str = ""
    where: str = ""
    context: SpanContext | None = None
    framework: str = ""
    payload: str | None = None

    @property
    def member(self) -> str:
        """Its key: the same run has the same, and no other has it. Begins with `key_of_job`."""
        milliseconds = str(int(self.started_at * 1000))
        parts = (str(self.job.attempt), self.owner, milliseconds, _plain(self.service))
        return key_of_job(self.job.id) + _SEPARATOR.join(parts)

    def to_text(self, redactor: Redactor) -> str:
        """All of it as JSON, bounded, without secrets and without the job's arguments."""
        job, context = self.job, self.context
        payload = self.payload
        if payload is not None and len(payload.encode("utf-8", "surrogatepass")) > LARGEST_PAYLOAD:
            payload = None
        said: dict[str, Any] = {
            "name": redactor.text(cut(job.name, _LONGEST_TEXT)),
            "id": cut(job.id, _LONGEST_STORED_ID),
            "queue": redactor.text(cut(job.queue, _LONGEST_TEXT)),
            "system": cut(job.system, _LONGEST_TEXT),
            "attempt": job.attempt,
            "trigger": job.trigger.value,
            "enqueued_at": job.enqueued_at,
            "ready_at": job.ready_at,
            "delayed": job.delayed,
            "max_runtime": job.max_runtime,
            "recoverable": job.recoverable,
            "carrier": _carrier(job.carrier, redactor),
            "started_at": self.started_at,
            "owner": self.owner,
            "service": self.service,
            "where": self.where,
            "span": [f"{context.trace_id:032x}", f"{context.span_id:016x}", int(context.trace_flags)] if context else None,
            "framework": self.framework,
            "payload": payload,
        }  # fmt: skip
        return json.dumps({name: value for name, value in said.items() if value not in (None, "", {})})


def from_text(text: str | bytes) -> Lease:
    """The lease that was written with `Lease.to_text`.

    Raises:
        ValueError: The text is none.
    """
    try:
        said = json.loads(text)
        if not isinstance(said, dict):
            raise TypeError
        job = Job(
            name=str(said["name"]),
            id=str(said["id"]),
            queue=str(said.get("queue", "")),
            system=str(said.get("system", "")),
            attempt=int(said["attempt"]),
            trigger=Trigger(said.get("trigger", Trigger.MANUAL.value)),
            enqueued_at=_number(said.get("enqueued_at")),
            ready_at=_number(said.get("ready_at")),
            delayed=bool(said.get("delayed", False)),
            carrier={str(name): str(value) for name, value in said.get("carrier", {}).items()},
            max_runtime=_number(said.get("max_runtime")),
            recoverable=bool(said.get("recoverable", False)),
        )
        payload = said.get("payload")
        return Lease(
            job,
            float(said["started_at"]),
            owner=str(said["owner"]),
            service=str(said.get("service", "")),
            where=str(said.get("where", "")),
            context=_context(said.get("span")),
            framework=str(said.get("framework", "")),
            payload=None if payload is None else str(payload),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"this is no record of a lease: {cut(repr(text), 200)}") from error


def key_of_job(job_id: str) -> str:
    """What the members of all runs of one job begin with."""
    text = _plain(job_id)
    if len(text) > _LONGEST_ID:
        text = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return text + _SEPARATOR


def _plain(text: str) -> str:
    return text.replace(_SEPARATOR, " ").encode("utf-8", "replace").decode()


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _context(said: Any) -> SpanContext | None:
    if not said:
        return None
    trace_id, span_id, flags = said
    found = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags)))
    return found if found.is_valid else None


def _carrier(headers: Mapping[str, str], redactor: Redactor) -> dict[str, str]:
    traces = ("traceparent", catalogue.PREVIOUS_ATTEMPT_HEADER)
    found = {}
    for name, value in headers.items():
        if len(value) > _LONGEST_HEADER:
            continue
        untouched = name in traces and _TRACE.fullmatch(value)
        found[name] = value if untouched else str(redactor.value(name, value))
    return found


class LeaseStore(Protocol):
    """Keeps leases. It is called on a thread of ours, may block for a few seconds and may raise.

    Times are its own: it must not trust the clocks of those who call it.
    """

    name: str
    """Where it is, as a log line may show it."""

    def hold(self, leases: Sequence[tuple[str, str]], ttl: float) -> list[Fate]:
        """Take or renew leases for ``ttl`` seconds.

        Args:
            leases: Members with their details as text; with ``""`` one that the store should know already.

        Returns:
            The fate of each.
        """

    def release(self, members: Sequence[str]) -> list[Fate]:
        """Give up leases whose runs have ended.

        Returns:
            The fate that each had until now.
        """

    def claim(self, claimer: str, service: str, limit: int, ttl: float) -> list[tuple[str, str]]:
        """Take over leases that have run out, those of ``service`` first, so that nobody else does for a while.

        A claim that is not settled in some multiples of ``ttl`` runs out too: its claimer died.

        Returns:
            Members with their details, at most ``limit``.
        """

    def settle(self, claimer: str, members: Sequence[str]) -> None:
        """Forget claimed leases: their loss is recorded."""

    def renew(self) -> None:
        """Go on with locks and connections of this process's own: it was forked off, or its threads are of another kind now."""
