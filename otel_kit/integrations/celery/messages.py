"""What a Celery message says of its job. Headers come from outside and may be anything."""

from __future__ import annotations

import functools
import math
import time
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from otel_kit import catalogue
from otel_kit.jobs import propagation
from otel_kit.jobs.model import Job, Trigger

_SYSTEMS = {
    "redis": "redis", "rediss": "redis", "sentinel": "redis", "amqp": "rabbitmq", "amqps": "rabbitmq", "pyamqp": "rabbitmq",
    "sqs": "aws_sqs", "sqla": "sql", "kafka": "kafka", "confluentkafka": "kafka", "gcpubsub": "gcp_pubsub",
}  # fmt: skip

#: Longer in the queue, and the header is not to be believed (seconds).
_LONGEST_WAIT = 30 * 86_400.0
_TRIGGERS = {trigger.value: trigger for trigger in Trigger}


@functools.lru_cache(maxsize=64)
def _system_of(broker_url: str) -> str:
    scheme = urlsplit(broker_url.split(";")[0]).scheme.split("+")[0]
    return _SYSTEMS.get(scheme, scheme or "unknown")


def system(app: Any) -> str:
    url = app.conf.broker_write_url or app.conf.broker_url or "amqp://"
    return _system_of(url if isinstance(url, str) else str(url[0]))


def when(text: object) -> float | None:
    if isinstance(text, datetime):
        return text.timestamp()
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def queue_of(app: Any, delivery: Any, headers: Any) -> str:
    """The queue's name as its producer has it, which a routing key is not for a topic exchange.

    The header is believed only where the name is one of ours: a label made of it must stay bounded.
    """
    delivery = delivery or {}
    known = app.amqp.queues
    named = (headers or {}).get(catalogue.QUEUE_HEADER)
    if isinstance(named, str) and named in known:
        return named
    exchange, routing_key = delivery.get("exchange") or "", delivery.get("routing_key") or "unknown"
    for queue in known.values():
        if queue.routing_key == routing_key and queue.exchange.name == exchange:
            return str(queue.name)
    return str(routing_key)


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, (str, int, float)) else None
    except ValueError:
        return None


def _carrier(headers: Any) -> dict[str, str]:
    wanted = {
        catalogue.ENQUEUED_AT_HEADER, catalogue.TRIGGER_HEADER, catalogue.QUEUE_HEADER,
        catalogue.PREVIOUS_ATTEMPT_HEADER, *propagation.fields(),
    }  # fmt: skip
    return {name: str(headers[name]) for name in wanted if headers and headers.get(name) is not None}


def job_of(name: str, task_id: str, queue: str, system: str, headers: Any, retries: int, eta: object) -> Job:
    """A delivered job, from what its message says. Headers come from outside and may be anything."""
    carrier = _carrier(headers)
    enqueued_at = _number(carrier.get(catalogue.ENQUEUED_AT_HEADER))
    start_at = when(eta)
    # One message with a time of the year 1970, or none at all, would spoil the sum of a histogram until the restart.
    oldest = time.time() - _LONGEST_WAIT
    times = [at for at in (enqueued_at, start_at) if at is not None and oldest < at < math.inf]
    return Job(
        name=name,
        id=task_id,
        queue=queue,
        system=system,
        attempt=retries + 1,
        trigger=_TRIGGERS.get(carrier.get(catalogue.TRIGGER_HEADER, ""), Trigger.MANUAL),
        enqueued_at=enqueued_at,
        ready_at=max(times) if times else None,
        delayed=start_at is not None,
        carrier=carrier,
    )


def job_of_task(task: Any, task_id: str) -> Job:
    request = task.request
    eager = bool(request.is_eager)
    queue = "" if eager else queue_of(task.app, request.delivery_info, request.headers)
    return job_of(
        task.name,
        task_id,
        queue,
        "" if eager else system(task.app),
        request.headers,
        request.retries or 0,
        request.eta,
    )


def job_of_request(request: Any) -> Job:
    headers = request.request_dict
    queue = queue_of(request.app, request.delivery_info, headers)
    retries = headers.get("retries")
    return job_of(request.name, request.id, queue, system(request.app), headers, int(retries or 0), headers.get("eta"))
