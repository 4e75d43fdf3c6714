"""What a Celery message says of its job."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

from otel_kit import catalogue
from otel_kit.jobs.decorator import Declaration, declaration
from otel_kit.jobs.delivery import delivered
from otel_kit.jobs.model import Job

_SYSTEMS: Final = {
    "redis": "redis", "rediss": "redis", "sentinel": "redis", "amqp": "rabbitmq", "amqps": "rabbitmq", "pyamqp": "rabbitmq",
    "sqs": "aws_sqs", "sqla": "sql", "kafka": "kafka", "confluentkafka": "kafka", "gcpubsub": "gcp_pubsub",
}  # fmt: skip

#: Celery's own tasks that only carry others: joining a chord, starting a group. They hand the trace on and are no jobs.
_PLUMBING: Final = frozenset(
    {"celery.accumulate", "celery.chain", "celery.chord", "celery.chord_unlock", "celery.group"}
)
#: The option that lets a task be run again after its worker has died: ``@app.task(otel_kit_recover=True)``.
RECOVER_OPTION: Final = "otel_kit_recover"
#: More attempts than any queue makes: what says so is no number of retries.
_MOST_RETRIES: Final = 1_000_000
_pool_limits: tuple[object, object] = (None, None)


def is_plumbing(name: object) -> bool:
    """Whether a task is Celery's own machinery and no job of anybody's."""
    return name in _PLUMBING


@functools.lru_cache(maxsize=64)
def system_of(broker_url: str) -> str:
    """The broker's name in the semantic conventions."""
    scheme = urlsplit(broker_url.split(";")[0]).scheme.split("+")[0]
    return _SYSTEMS.get(scheme, scheme or "unknown")


def broker_url(app: Any) -> str:
    """Where the app's messages go; with failover the first place."""
    url = app.conf.broker_write_url or app.conf.broker_url or "amqp://"
    return url if isinstance(url, str) else str(url[0])


def system(app: Any) -> str:
    """The app's broker."""
    return system_of(broker_url(app))


def when(moment: object) -> float | None:
    """A moment as messages state it (ISO 8601, or a datetime) in unix seconds. Without a zone it is UTC, as Celery takes it."""
    from celery.utils.time import maybe_make_aware

    try:
        at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        return float(maybe_make_aware(at).timestamp()) if isinstance(at, datetime) else None
    except (ValueError, OverflowError):
        return None


def retries_of(value: object) -> int:
    """The number of retries that a header states."""
    return value if isinstance(value, int) and 0 < value < _MOST_RETRIES else 0


def name_of(queue: object) -> str:
    """A queue's name, where it may be given as one of Kombu's."""
    return str(getattr(queue, "name", queue) or "")


def queue_of(app: Any, delivery: Any, headers: Any) -> str:
    """The queue's name as its producer has it, which a routing key is not for a topic exchange.

    The header is believed only where the name is one of ours.
    """
    delivery = delivery if isinstance(delivery, Mapping) else {}
    known = app.amqp.queues
    named = headers.get(catalogue.QUEUE_HEADER) if isinstance(headers, Mapping) else None
    if isinstance(named, str) and named in known:
        return named
    exchange, routing_key = delivery.get("exchange") or "", delivery.get("routing_key") or "unknown"
    for queue in known.values():
        if queue.routing_key == routing_key and queue.exchange.name == exchange:
            return str(queue.name)
    return str(routing_key)


def declared(task: Any) -> Declaration | None:
    """What the task's function is declared to be by `otel_kit.job`, if it is."""
    return declaration(getattr(task, "run", None))


def expected(task: Any) -> tuple[type[BaseException], ...]:
    """Errors that a task says may happen."""
    said = declared(task)
    return (*(task.throws or ()), *(said.expected if said is not None else ()))


def is_recoverable(task: Any) -> bool:
    """Whether the task's owner allows it to be run again after its worker has died."""
    said = declared(task)
    return getattr(task, RECOVER_OPTION, False) is True or (said is not None and said.recoverable)


def time_limit(stated: object, task: Any) -> float | None:
    """Seconds that a run may take: as it is declared, else its hard limit, else its soft one; by message, task or worker.

    Args:
        stated: What the message says: hard and soft limit.
        task: The task, whose worker's limits `set_pool_limits` has told.
    """
    said = declared(task)
    if said is not None and said.max_runtime is not None:
        return said.max_runtime
    by_message = stated if isinstance(stated, (list, tuple)) and len(stated) == 2 else (None, None)
    by_task = (getattr(task, "time_limit", None), getattr(task, "soft_time_limit", None))
    for limits in zip(by_message, by_task, _pool_limits, strict=True):
        for limit in limits:
            if isinstance(limit, (int, float)) and limit > 0:
                return float(limit)
    return None


def set_pool_limits(hard: object, soft: object) -> None:
    """The limits of this worker's tasks that have none of their own, seconds."""
    global _pool_limits
    _pool_limits = (hard, soft)


def job_of_task(task: Any, request: Any) -> Job:
    """The job as the process sees it that runs it; ``request`` is ``task.request``."""
    eager = bool(request.is_eager)
    return delivered(
        task.name,
        str(request.id),
        "" if eager else queue_of(task.app, request.delivery_info, request.headers),
        "" if eager else system(task.app),
        request.headers,
        attempt=retries_of(request.retries) + 1,
        start_at=when(request.eta),
        max_runtime=None if eager else time_limit(request.timelimit, task),
        recoverable=not eager and is_recoverable(task),
    )


def job_of_request(request: Any) -> Job:
    """The job as the worker's main process sees it: ``request`` is its own `Request`."""
    headers, task = request.request_dict, request.task
    return delivered(
        task.name,
        str(request.id),
        queue_of(request.app, request.delivery_info, headers),
        system(request.app),
        headers,
        attempt=retries_of(headers.get("retries")) + 1,
        start_at=when(headers.get("eta")),
        max_runtime=time_limit(request.time_limits, task),
        recoverable=is_recoverable(task),
    )


def job_of_message(app: Any, message: Any, body: object = None) -> Job:
    """The job that a message would have been; of what never becomes a request nothing is sure."""
    headers = message.headers if isinstance(message.headers, Mapping) else {}
    # The old protocol says all of it in the body.
    said = headers if "task" in headers or not isinstance(body, Mapping) else body
    return delivered(
        str(said.get("task") or "unknown"),
        str(said.get("id") or ""),
        queue_of(app, message.delivery_info, headers),
        system(app),
        headers,
        attempt=retries_of(said.get("retries")) + 1,
        start_at=when(said.get("eta")),
    )
