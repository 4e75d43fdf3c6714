"""What a Dramatiq message says of its job. Its options come from outside and may be anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from otel_kit.jobs.decorator import declaration
from otel_kit.jobs.delivery import delivered
from otel_kit.jobs.model import Job

#: The message option that our headers travel in. Workers without otel-kit carry it along and do not look at it.
OPTION: Final = "otel_kit"
#: Within it, when a delayed message was due (unix seconds): Dramatiq drops its own ``eta`` at that moment.
DUE: Final = "due"

_SYSTEMS: Final = {
    "RedisBroker": "redis", "RabbitmqBroker": "rabbitmq", "StubBroker": "stub", "SQSBroker": "aws_sqs",
    "PostgresBroker": "postgresql",
}  # fmt: skip


def system(broker: object) -> str:
    """What carries this broker's messages, in the words of the semantic conventions where they have one."""
    for kind in type(broker).__mro__:
        if kind.__name__ in _SYSTEMS:
            return _SYSTEMS[kind.__name__]
    return type(broker).__name__.removesuffix("Broker").lower() or "unknown"


def queue_of(name: str) -> str:
    """The queue that an actor declares, of which ``.DQ`` and ``.XQ`` are the delayed and the dead part."""
    return name[:-3] if name.endswith((".DQ", ".XQ")) else name


def headers_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Our headers among a message's options; a copy."""
    found = options.get(OPTION)
    return dict(found) if isinstance(found, Mapping) else {}


def seconds(milliseconds: object) -> float | None:
    """Dramatiq's milliseconds as seconds, None for what is no number of them."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float)) or not math.isfinite(milliseconds):
        return None
    return milliseconds / 1000


def attempt_of(options: Mapping[str, Any]) -> int:
    """1 for the first."""
    retries = options.get("retries")
    return retries + 1 if isinstance(retries, int) and 0 <= retries < 1_000_000 else 1


def enqueued_at(options: Mapping[str, Any], message_timestamp: object) -> float | None:
    """When Dramatiq itself says that a message came into its queue (unix seconds).

    The message's own time is that of its making, which retries keep; ``requeue_timestamp`` is there since Dramatiq 2.0.
    """
    times = [seconds(message_timestamp), seconds(options.get("requeue_timestamp"))]
    return max((at for at in times if at is not None), default=None)


def max_runtime(broker: Any, actor: Any, options: Mapping[str, Any]) -> float | None:
    """Seconds that a run may take: as the function is declared, else until Dramatiq interrupts it; None where it does not."""
    declared = declaration(actor.fn) if actor is not None else None
    if declared is not None and declared.max_runtime is not None:
        return declared.max_runtime
    default = next((m.time_limit for m in broker.middleware if _is(m, "TimeLimit")), None)
    if default is None:
        return None
    of_actor = actor.options.get("time_limit", default) if actor is not None else default
    return seconds(options.get("time_limit") or of_actor)


def _is(middleware: object, name: str) -> bool:
    return any(kind.__name__ == name and kind.__module__.startswith("dramatiq.") for kind in type(middleware).__mro__)


def job_of(broker: Any, message: Any) -> Job:
    """A delivered job."""
    options = message.options
    headers = headers_of(options)
    due = headers.get(DUE)
    return delivered(
        str(message.actor_name),
        str(message.message_id),
        queue_of(str(message.queue_name)),
        system(broker),
        headers,
        attempt=attempt_of(options),
        start_at=due if isinstance(due, float) else None,
        enqueued_at=enqueued_at(options, message.message_timestamp),
        max_runtime=max_runtime(broker, broker.actors.get(message.actor_name), options),
    )


def expects(broker: Any, message: Any, error: BaseException) -> bool:
    """Whether the actor declares this error as one that may happen: its ``throws``, or what `otel_kit.job` was told."""
    actor = broker.actors.get(message.actor_name)
    of_actor = actor.options.get("throws") if actor is not None else None
    throws: Any = message.options.get("throws") or of_actor or ()
    declared = declaration(actor.fn) if actor is not None else None
    return isinstance(error, throws) or (declared is not None and isinstance(error, declared.expected))
