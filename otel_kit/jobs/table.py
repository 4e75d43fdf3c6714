"""Jobs that live in a SQL table: `publish` around the INSERT, `run` around the work of one claimed row.

    with otel_kit.jobs.publish("resize", queue="images", id=job_id, system="postgresql") as carrier, engine.begin() as db:
        db.execute(insert(jobs).values(id=job_id, carrier=carrier))

    with otel_kit.jobs.run("resize", queue="images", id=row.id, carrier=row.carrier, created_at=row.created_at,
                           attempt=row.attempt, max_attempts=5, system="postgresql") as run:
        resize(row)

The table stays the application's: nothing here reads or writes it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import tzinfo
from types import TracebackType
from typing import Final, Self

from opentelemetry import context as otel_context

from otel_kit import catalogue
from otel_kit.guard import guard
from otel_kit.jobs import delivery, propagation, recorder
from otel_kit.jobs.model import Job, Outcome, Trigger
from otel_kit.jobs.recorder import Publication, get_recorder
from otel_kit.jobs.rows import When, carrier_text, headers_of, unix_seconds
from otel_kit.settings import ConfigurationError
from otel_kit.telemetry.plain import text_of

#: `messaging.system` where the caller does not name the database.
DEFAULT_SYSTEM: Final = "sql"
#: Seconds by which ``run_at`` must lie behind ``created_at`` to be a delay on purpose: the two often default to one moment.
_SAME_MOMENT: Final = 0.1
_STOPPED: Final = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)

Expected = type[BaseException] | tuple[type[BaseException], ...]


class RolledBackError(Exception):
    """The transaction with the row in it was rolled back, on purpose and without an error."""


class Publishing:
    """One publish, made by `publish`: a context manager, sync and async, that gives the carrier as text."""

    def __init__(self, job: Job, trigger: Trigger | None) -> None:
        self._job = job
        self._trigger = trigger
        self._recording: AbstractContextManager[Publication] | None = None
        self._publication: Publication | None = None
        self._given_up: BaseException | None = None
        #: What the row is to hold; ``{}`` until the block begins.
        self.carrier = "{}"

    def identify(self, id: object) -> None:  # noqa: A002 - what it is called everywhere else
        """Say inside the block what the job's id is, where only the INSERT tells it (``RETURNING id``)."""
        with guard("table: naming a publish"):
            self._job = replace(self._job, id=text_of(id))
            if self._publication is not None:
                self._publication.job = self._job
                self._publication.span.set_attribute(catalogue.JOB_ID, self._job.id)
                self._publication.span.set_attribute(catalogue.MESSAGING_MESSAGE_ID, self._job.id)

    def rolled_back(self, error: BaseException | None = None) -> None:
        """Say inside the block that the row will not come to be, where no exception says it."""
        self._given_up = error or RolledBackError("the transaction was rolled back")

    def record(self) -> str:
        """Record the publish as done, without a block around it, and give the carrier."""
        with self as carrier:
            return carrier

    def __enter__(self) -> str:
        with guard("table: beginning a publish"):
            if self._recording is not None:
                raise RuntimeError("one publish() is one job: call it again for the next")
            self._recording = get_recorder().publishing(self._job, self._trigger)
            self._publication = self._recording.__enter__()
            headers: dict[str, str] = {}
            self._publication.inject(headers)
            self.carrier = carrier_text(headers)
        return self.carrier

    def __exit__(self, _kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        error = error or self._given_up
        if self._publication is not None and self._recording is not None:
            with guard("table: ending a publish"):
                self._recording.__exit__(type(error) if error else None, error, trace)

    async def __aenter__(self) -> str:
        return self.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        self.__exit__(kind, error, trace)


def publish(
    name: str,
    *,
    queue: str,
    id: object = "",  # noqa: A002 - what it is called everywhere else
    run_at: When = None,
    system: str = DEFAULT_SYSTEM,
    trigger: Trigger | str | None = None,
    timezone: tzinfo | None = None,
) -> Publishing:
    """Record that a job is handed to its table. Use it around the INSERT and its COMMIT.

    The block gets the carrier, one line of JSON for a text, JSON or JSONB column. An exception that leaves the block (the
    INSERT's, or the COMMIT's where the transaction is inside) marks the span and goes on. The span is not made current:
    after a failed publish nothing of it is left. ``publish(...).record()`` is the same for callers without a block.

    Args:
        name: What kind of job; one of a bounded set.
        queue: The queue's name.
        id: The job's id, anything with a text. Where the database makes it, leave it out and call
            `Publishing.identify` inside the block.
        run_at: When it is to start at the earliest: a datetime with a time zone, unix seconds, or ISO 8601 text.
        system: The database's name, `messaging.system` (``"postgresql"``, ``"sqlite"``, ``"mysql"``).
        trigger: What made it: ``api``, ``cron``, ``schedule``, ``retry`` or ``manual``; left out, an API that answers a
            request is recognised.
        timezone: The zone of a ``run_at`` that names none.

    Raises:
        ConfigurationError: ``run_at`` or ``trigger`` is not accepted.
    """
    start_at = unix_seconds(run_at, "run_at", timezone)
    if start_at is not None and start_at <= time.time() + _SAME_MOMENT:
        start_at = None
    job = Job(
        name=text_of(name),
        id=text_of(id),
        queue=text_of(queue),
        system=system,
        ready_at=start_at,
        delayed=start_at is not None,
    )
    return Publishing(job, _trigger(trigger))


def _trigger(given: Trigger | str | None) -> Trigger | None:
    try:
        return None if given is None else Trigger(given)
    except ValueError:
        accepted = ", ".join(trigger.value for trigger in Trigger)
        raise ConfigurationError(f"trigger={given!r} is not accepted; accepted: {accepted}, or None") from None


class TableRun:
    """The work of one claimed row, made by `run`: a context manager, sync and async."""

    def __init__(self, job: Job, max_attempts: int | None, throws: Expected) -> None:
        self.job = job
        self._retries_left = max_attempts is not None and job.attempt < max_attempts
        self._throws = throws
        self._run: recorder.Run | None = None
        self._said: tuple[Outcome, BaseException | None] | None = None
        #: How it ended; None until it has.
        self.outcome: Outcome | None = None

    @property
    def carrier(self) -> str:
        """What the row is to hold for its next attempt, inside the block or behind it.

        The job's own publish and baggage stay, this attempt is added for the next to link to, and this moment is when the
        next one's wait begins, unless its ``run_at`` is later.
        """
        headers = dict(self.job.carrier)
        with guard("table: writing a retry's carrier"):
            token = otel_context.attach(propagation.extract(self.job))
            try:
                propagation.inject(headers, Trigger.RETRY, self._run.context if self._run is not None else None)
            finally:
                otel_context.detach(token)
        return carrier_text(headers)

    def retry(self, error: BaseException | None = None) -> None:
        """Say that the row goes back to be run again, whatever ``max_attempts`` is."""
        self._said = Outcome.RETRY, error

    def fail(self, error: BaseException | None = None) -> None:
        """Say that it failed for good, although attempts may be left."""
        self._said = Outcome.FAILURE, error

    def reject(self, error: BaseException | None = None) -> None:
        """Say that this row cannot be worked on: its payload is unreadable, its kind unknown."""
        self._said = Outcome.REJECTED, error

    def skip(self) -> None:
        """Say that there was nothing to do."""
        self._said = Outcome.SKIPPED, None

    def __enter__(self) -> Self:
        with guard("table: a run's start"):
            if self._run is not None:
                raise RuntimeError("one run() is one attempt: call it again for the next")
            get_recorder().tally.received(self.job)
            self._run = get_recorder().start(self.job, counted=True)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.outcome, cause = self._said or (self._of(error), None)
        cause = cause or error
        if self._run is not None:
            with guard("table: a run's end"):
                self._run.finish(self.outcome, cause, expected=cause is not None and isinstance(cause, self._throws))

    def _of(self, error: BaseException | None) -> Outcome:
        if error is None:
            return Outcome.SUCCESS
        if isinstance(error, _STOPPED):
            return Outcome.REVOKED
        return Outcome.RETRY if self._retries_left else Outcome.FAILURE

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.__exit__(kind, error, trace)


def run(
    name: str,
    *,
    queue: str,
    id: object,  # noqa: A002 - what it is called everywhere else
    carrier: object = None,
    created_at: When = None,
    run_at: When = None,
    attempt: int = 1,
    max_attempts: int | None = None,
    max_runtime: float | None = None,
    throws: Expected = (),
    system: str = DEFAULT_SYSTEM,
    timezone: tzinfo | None = None,
    recoverable: bool = False,
) -> TableRun:
    """Record the work of one claimed row. Use it around the work; what the work raises goes on to the caller.

    The run is a child of its publish, or links to it where it was delayed or is a later attempt. It waited from the latest
    of ``created_at``, ``run_at`` and the carrier's own time to its start. An exception is a retry while attempts are left,
    else a failure; `TableRun.retry`, ``fail``, ``reject`` and ``skip`` say otherwise. Cancellation, an interrupt and
    ``sys.exit`` are ``revoked``: someone has stopped it.

    Args:
        name: What kind of job; one of a bounded set.
        queue: The queue's name.
        id: The row's id, anything with a text.
        carrier: What `publish` gave, as the column gives it back: text, bytes or a mapping. Anything else counts as none.
        created_at: When the row came to be: a datetime with a time zone, unix seconds, or ISO 8601 text.
        run_at: When it was wanted to start at the earliest, likewise.
        attempt: 1 for the first.
        max_attempts: How many attempts there are in all; None: a failure is final.
        max_runtime: Seconds after which a run counts as stuck.
        throws: Exceptions that the job may raise in its ordinary course: no ERROR status.
        system: The database's name, `messaging.system`.
        timezone: The zone of times that name none, ``datetime.UTC`` where the columns are in UTC.
        recoverable: Whether the row may be run again after its worker has died.

    Raises:
        ConfigurationError: A time without a zone and no ``timezone``, or an ``attempt`` that is no number.
    """
    created, wanted = unix_seconds(created_at, "created_at", timezone), unix_seconds(run_at, "run_at", timezone)
    if wanted is not None and created is not None and wanted <= created + _SAME_MOMENT:
        created, wanted = max(created, wanted), None
    job = delivery.delivered(
        text_of(name), text_of(id), text_of(queue), system, headers_of(carrier),
        attempt=_whole("attempt", attempt), start_at=wanted, enqueued_at=created,
        max_runtime=max_runtime, recoverable=recoverable,
    )  # fmt: skip
    return TableRun(job, None if max_attempts is None else _whole("max_attempts", max_attempts), throws)


def _whole(parameter: str, given: object) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    raise ConfigurationError(f"{parameter}={given!r:.200} is not accepted; accepted: a whole number")


class TableWorker:
    """What `worker` has made known; tell it of each round of the loop."""

    def beat(self) -> None:
        """The loop has come round: `job.worker.heartbeat.time`. Call it once a second or so, also when there is nothing."""
        with guard("table: a sign of life"):
            get_recorder().tally.beat("loop")


def worker(queues: str | Iterable[str], *, slots: int = 1, names: Iterable[str] = ()) -> TableWorker:
    """Say at its start that this process works on rows of these queues.

    Args:
        queues: One name or several.
        slots: Rows that it works on at the same time.
        names: The kinds of jobs that it knows: their counters exist from here on, at 0.
    """
    listed = [queues] if isinstance(queues, str) else list(queues)
    made = TableWorker()
    with guard("table: a worker's start"):
        tally = get_recorder().tally
        tally.pool(listed, lambda: slots)
        for name in names:
            for queue in listed:
                tally.expect(name, queue)
    made.beat()
    return made
