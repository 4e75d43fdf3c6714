"""What a message says of its job. Headers come from outside and may be anything."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Final

from otel_kit import catalogue
from otel_kit.jobs import propagation
from otel_kit.jobs.model import Job, Trigger
from otel_kit.telemetry.plain import text_of

#: Longer in the queue, and the time is not to be believed (seconds).
_LONGEST_WAIT: Final = 30 * 86_400.0
#: Characters of one header that are read: W3C allows baggage 8,192.
_LONGEST_HEADER: Final = 8192
_TRIGGERS: Final = {trigger.value: trigger for trigger in Trigger}


def carrier(headers: object) -> dict[str, str]:
    """Those of a message's headers that are ours, as text."""
    if not isinstance(headers, Mapping):
        return {}
    wanted = {
        catalogue.ENQUEUED_AT_HEADER,
        catalogue.TRIGGER_HEADER,
        catalogue.QUEUE_HEADER,
        catalogue.PREVIOUS_ATTEMPT_HEADER,
        *propagation.fields(),
    }
    found = {}
    for name in wanted:
        value = headers.get(name)
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if text is not None and len(shown := text_of(text)) <= _LONGEST_HEADER:
            found[name] = shown
    return found


def unix_time(value: object) -> float | None:
    """A time as a header or a framework states it, if it can be one: neither long past nor no number at all."""
    try:
        number = float(value) if isinstance(value, (str, int, float)) else math.nan
    except (ValueError, OverflowError):
        return None
    # One message from the year 1970 would spoil the sum of a histogram until the restart.
    return number if time.time() - _LONGEST_WAIT < number < math.inf else None


def delivered(
    name: str,
    id: str,  # noqa: A002 - what it is called everywhere else
    queue: str,
    system: str,
    headers: object,
    *,
    attempt: int = 1,
    start_at: float | None = None,
    enqueued_at: float | None = None,
    max_runtime: float | None = None,
    recoverable: bool = False,
) -> Job:
    """A job as it comes out of its queue.

    Args:
        name: What kind of job.
        id: Its own id, which all its attempts share.
        queue: The queue's name, as its producer has it.
        system: The broker.
        headers: Whatever travelled with it.
        attempt: 1 for the first.
        start_at: When it was wanted to start (unix seconds), where its start was put off on purpose.
        enqueued_at: When it came into this queue by the framework's own account (unix seconds). The latest of this, our own
            header and ``start_at`` is when it was ready.
        max_runtime: Seconds that it may take.
        recoverable: Whether it may be run again after its worker has died.
    """
    ours = carrier(headers)
    sent_at = unix_time(ours.get(catalogue.ENQUEUED_AT_HEADER))
    times = [at for at in (sent_at, unix_time(enqueued_at), unix_time(start_at)) if at is not None]
    return Job(
        name=name,
        id=id,
        queue=queue,
        system=system,
        attempt=max(1, attempt),
        trigger=_TRIGGERS.get(ours.get(catalogue.TRIGGER_HEADER, ""), Trigger.MANUAL),
        enqueued_at=sent_at if sent_at is not None else unix_time(enqueued_at),
        ready_at=max(times) if times else None,
        delayed=start_at is not None,
        carrier=ours,
        max_runtime=max_runtime,
        recoverable=recoverable,
    )
