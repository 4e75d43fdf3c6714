"""What a job is, whatever framework carries it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """How a run ended, or why it never began."""

    SUCCESS = "success"
    FAILURE = "failure"
    RETRY = "retry"
    EXPIRED = "expired"
    REVOKED = "revoked"
    REJECTED = "rejected"
    LOST = "lost"
    MISSED = "missed"
    SKIPPED = "skipped"


class Trigger(StrEnum):
    """What made a job come into being."""

    API = "api"
    CRON = "cron"
    SCHEDULE = "schedule"
    RETRY = "retry"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt of one job.

    Attributes:
        name: What kind of job; one of a bounded set.
        id: This job's own id; its attempts share it.
        queue: The queue's name, ``""`` where there is no broker.
        system: The broker (``redis``, ``rabbitmq`` ...), ``""`` where there is none.
        attempt: 1 for the first.
        enqueued_at: When it was handed to the broker (unix seconds), if known.
        ready_at: When it could have started at the earliest (unix seconds): the later of `enqueued_at` and a wanted delay.
        delayed: Whether its start was put off on purpose.
        carrier: The headers that travel with it: trace context, baggage and ours.
        max_runtime: Seconds after which a run counts as stuck, or is cut off; None where nobody has said.
        recoverable: Whether its owner allows it to be run again after its worker has died.
    """

    name: str
    id: str
    queue: str = ""
    system: str = ""
    attempt: int = 1
    trigger: Trigger = Trigger.MANUAL
    enqueued_at: float | None = None
    ready_at: float | None = None
    delayed: bool = False
    carrier: Mapping[str, str] = field(default_factory=dict)
    max_runtime: float | None = None
    recoverable: bool = False

    def waited(self, started_at: float) -> float | None:
        """Seconds from `ready_at` to ``started_at``; never negative, since two hosts' clocks differ. None if unknown."""
        return None if self.ready_at is None else max(0.0, started_at - self.ready_at)
