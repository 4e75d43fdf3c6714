"""Running a lost job again: its message as it came, and how it is sent once more."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from otel_kit import catalogue
from otel_kit.integrations.celery import queues, run_ids
from otel_kit.integrations.celery.messages import job_of_request, retries_of, system, when
from otel_kit.integrations.redis_leases import leases_for
from otel_kit.jobs.leases import keep
from otel_kit.jobs.model import Job, Trigger
from otel_kit.jobs.recorder import get_recorder

FRAMEWORK: Final = "celery"
#: Properties of a message that belong to its delivery and not to itself.
_OF_DELIVERY: Final = frozenset(
    {"delivery_info", "delivery_tag", "body_encoding", "delivery_mode", "application_headers"}
)


def keep_leases(app: Any) -> None:
    """Lease the runs of this worker: see `otel_kit.jobs.leases.keep`."""
    keep(leases_for(queues.client_of(app)), framework=FRAMEWORK, payload=_payload_of)


def _payload_of(job: Job) -> str | None:
    from celery.worker import state

    request = state.requests.get(job.id)
    if request is None or job_of_request(request).name != job.name:
        return None
    return json.dumps(recovery_payload(request))


def recovery_payload(request: Any) -> dict[str, Any]:
    """What it takes to send a running job's message once more, fit for JSON.

    Args:
        request: The worker's own `celery.worker.request.Request`.
    """
    message = request.message
    body = message.body
    raw = body.encode("utf-8") if isinstance(body, str) else bytes(body)
    delivery = message.delivery_info or {}
    return {
        "body": base64.b64encode(raw).decode("ascii"),
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "headers": _plain({k: v for k, v in (message.headers or {}).items() if k != run_ids.KEY}),
        "properties": _plain({k: v for k, v in (message.properties or {}).items() if k not in _OF_DELIVERY}),
        "exchange": delivery.get("exchange") or "",
        "routing_key": delivery.get("routing_key") or "",
    }


def recover(app: Any, payload: Mapping[str, Any]) -> str:
    """Send a lost job's message once more: same id, same arguments, same attempt.

    Its span, count and event are those of a publish, its trigger is ``retry``. An ETA or an expiry that has passed meanwhile
    still counts: an expired job is given up by the worker that gets it.

    Args:
        app: The Celery app.
        payload: What `recovery_payload` gave.

    Returns:
        The job's id.

    Raises:
        ValueError: It is no such payload.
        kombu.exceptions.OperationalError: The broker does not take it.
    """
    try:
        headers = dict(payload["headers"])
        body = base64.b64decode(payload["body"])
        name, task_id = str(headers["task"]), str(headers["id"])
        exchange, routing_key = str(payload["exchange"]), str(payload["routing_key"])
        properties = dict(payload.get("properties") or {})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this is no payload of a Celery job ({type(error).__name__}: {error})") from error
    start_at = when(headers.get("eta"))
    job = Job(
        name=name,
        id=task_id,
        queue=str(headers.get(catalogue.QUEUE_HEADER) or routing_key),
        system=system(app),
        attempt=retries_of(headers.get("retries")) + 1,
        ready_at=start_at,
        delayed=start_at is not None,
    )
    with (
        get_recorder().publishing(job, Trigger.RETRY) as publication,
        app.producer_pool.acquire(block=True) as producer,
    ):
        publication.inject(headers)
        producer.publish(
            body,
            content_type=payload.get("content_type"),
            content_encoding=payload.get("content_encoding"),
            headers=headers,
            exchange=exchange,
            routing_key=routing_key,
            retry=True,
            **properties,
        )
    return task_id


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON takes of them; a value that it does not take is not the message's own (a timestamp of the transport's)."""
    found = {}
    for name, value in values.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            continue
        found[str(name)] = value
    return found
