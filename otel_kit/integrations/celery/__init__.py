"""Celery: who publishes (`producer`), who runs (`child`), how it ended (`worker`), what is noise (`broker`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.instrumentation.utils import unwrap

from otel_kit.guard import guard
from otel_kit.integrations.celery import broker, child, producer, worker
from otel_kit.integrations.takeover import Takeover
from otel_kit.telemetry import logs


class CeleryInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments Celery: producers, beat and workers of every pool. Stands in for upstream's."""

    _takeover = Takeover("opentelemetry.instrumentation.celery", "CeleryInstrumentor")

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("celery >= 5.4, < 6",)

    def _signals(self) -> list[tuple[Any, Callable[..., None]]]:
        from celery import signals

        return [
            (signals.before_task_publish, producer.before_publish),
            (signals.task_prerun, child.prerun),
            (signals.task_postrun, child.postrun),
            (signals.task_failure, child.failure),
            (signals.task_retry, child.retry),
            (signals.task_received, worker.received),
            (signals.task_revoked, worker.revoked),
            (signals.worker_ready, worker.worker_ready),
            (signals.worker_process_init, child.begins),
            (signals.worker_process_shutdown, child.ends),
        ]

    def _instrument(self, **_kwargs: Any) -> None:
        import celery.app.base

        self._takeover.begin()
        for signal, receiver in self._signals():
            signal.connect(receiver, weak=False)
        wrapt.wrap_function_wrapper(celery.app.base, "Celery.send_task", producer.send_task)
        # Imported only by those processes that are a worker, a beat, or talk to Redis.
        for module, name, wrapper in _LATE:
            wrapt.register_post_import_hook(functools.partial(_wrap_late, name, wrapper), module)
        # Celery hands every task's arguments to the log as an extra field.
        logs.hide_field("celery", "data")

    def _uninstrument(self, **_kwargs: Any) -> None:
        import importlib
        import sys

        import celery.app.base

        for signal, receiver in self._signals():
            signal.disconnect(receiver)
        unwrap(celery.app.base.Celery, "send_task")
        for module, name, _wrapper in _LATE:
            if module in sys.modules:
                owner: Any = importlib.import_module(module)
                *path, last = name.split(".")
                for part in path:
                    owner = getattr(owner, part)
                unwrap(owner, last)
        self._takeover.end()


_LATE: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("celery.beat", "Scheduler.apply_async", producer.beat),
    ("celery.worker.strategy", "create_request_cls", worker.create_request_cls),
    ("kombu.transport.redis", "Channel._get_client", broker.quiet_client),
)


def _wrap_late(name: str, wrapper: Callable[..., Any], module: Any) -> None:
    with guard(f"celery: wrapping {name}"):
        wrapt.wrap_function_wrapper(module, name, wrapper)
