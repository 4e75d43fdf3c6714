"""Celery: who publishes (`producer`, `schedules`), who runs (`child`), how it ended (`worker`), what never ran (`consumer`).

What a worker says of itself is in `ready`, with `queues` and `recovery`; what is noise in `broker`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection
from typing import Any, Final

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.instrumentation.utils import unwrap

from otel_kit.guard import guard
from otel_kit.integrations.celery import broker, child, consumer, producer, ready, schedules, worker
from otel_kit.integrations.takeover import Takeover
from otel_kit.telemetry import logs

_UPSTREAM: Final = "opentelemetry.instrumentation.celery"

_RECEIVERS: Final[tuple[tuple[str, Callable[..., None]], ...]] = (
    ("before_task_publish", producer.before_publish),
    ("task_prerun", child.prerun),
    ("task_postrun", child.postrun),
    ("task_failure", child.failure),
    ("task_retry", child.retry),
    ("task_revoked", worker.revoked),
    ("worker_ready", ready.worker_ready),
    ("worker_process_init", child.begins),
    ("worker_process_shutdown", child.ends),
    ("beat_init", schedules.beat_init),
)

_CONSUMER: Final = "celery.worker.consumer.consumer"
_WRAPPED: Final[tuple[tuple[str, str, Callable[..., Any]], ...]] = (
    ("celery.app.base", "Celery.send_task", producer.send_task),
    ("celery.beat", "Scheduler.apply_async", schedules.apply_async),
    ("celery.worker.strategy", "create_request_cls", worker.create_request_cls),
    (_CONSUMER, "Consumer.create_task_handler", consumer.task_handler),
    (_CONSUMER, "Consumer.on_unknown_task", consumer.unknown_task),
    (_CONSUMER, "Consumer.on_invalid_task", consumer.invalid_task),
    (_CONSUMER, "Consumer.on_unknown_message", consumer.unknown_message),
    (_CONSUMER, "Consumer.on_decode_error", consumer.decode_error),
    (_CONSUMER, "Consumer.perform_pending_operations", ready.loop_turn),
    ("kombu.transport.redis", "Channel._get_client", broker.quiet_client),
)


class CeleryInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments Celery: producers, beat and workers of every pool. Stands in for upstream's.

    It imports nothing of Celery's and waits for that: ``celery --pool gevent`` replaces sockets and select before it loads
    the rest of itself, and whatever is loaded earlier keeps the old ones and stops the whole worker at its first wait.
    """

    _takeover = Takeover(_UPSTREAM, "CeleryInstrumentor")
    _wanted = False

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("celery >= 5.4, < 6",)

    def _instrument(self, **_kwargs: Any) -> None:
        self._wanted = True
        wrapt.register_post_import_hook(self._take_over, _UPSTREAM)
        wrapt.register_post_import_hook(self._connect, "celery.signals")
        for module, name, wrapper in _WRAPPED:
            wrapt.register_post_import_hook(functools.partial(self._wrap, name, wrapper), module)
        # Celery hands every task's arguments to the log as an extra field.
        logs.hide_field("celery", "data")

    def _uninstrument(self, **_kwargs: Any) -> None:
        self._wanted = False
        signals = sys.modules.get("celery.signals")
        if signals is not None:
            for name, receiver in _RECEIVERS:
                getattr(signals, name).disconnect(receiver)
        for module, name, _wrapper in _WRAPPED:
            owner: Any = sys.modules.get(module)
            if owner is not None:
                *path, last = name.split(".")
                for part in path:
                    owner = getattr(owner, part)
                unwrap(owner, last)
        self._takeover.end()

    # What follows is called when the module is there: at once, or as it is imported.

    def _take_over(self, _module: Any) -> None:
        if self._wanted:
            with guard("celery: keeping upstream's instrumentation off"):
                self._takeover.begin()

    def _connect(self, signals: Any) -> None:
        if self._wanted:
            with guard("celery: listening to signals"):
                for name, receiver in _RECEIVERS:
                    getattr(signals, name).connect(receiver, weak=False)

    def _wrap(self, name: str, wrapper: Callable[..., Any], module: Any) -> None:
        if self._wanted:
            with guard(f"celery: wrapping {name}"):
                wrapt.wrap_function_wrapper(module, name, wrapper)
