"""arq: who enqueues (`producer`), who works (`worker`), one delivery (`run_job`), what waits (`queues`)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.instrumentation.utils import unwrap

from otel_kit.integrations.arq import producer, run_job, worker


class ArqInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments arq: producers, workers and their cron jobs."""

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("arq >= 0.26, < 0.29",)

    def _wrappers(self) -> list[tuple[Any, str, Callable[..., Any]]]:
        import arq.connections
        import arq.jobs
        import arq.worker

        return [
            (arq.connections.ArqRedis, "enqueue_job", producer.enqueue_job),
            (arq.connections, "serialize_job", producer.serialize_job),
            (arq.jobs.Job, "result", producer.quietly),
            (arq.worker.Worker, "main", worker.main),
            (arq.worker.Worker, "close", worker.close),
            (arq.worker.Worker, "run_cron", worker.run_cron),
            (arq.worker, "async_check_health", producer.quietly),
            (arq.worker.Worker, "run_job", run_job.run_job),
            (arq.worker, "deserialize_job_raw", run_job.deserialize_job_raw),
            (arq.worker, "serialize_result", run_job.serialize_result),
            (arq.worker.Worker, "finish_job", run_job.finish_job),
            (arq.worker.Worker, "finish_failed_job", run_job.finish_failed_job),
        ]

    def _instrument(self, **_kwargs: Any) -> None:
        for owner, name, wrapper in self._wrappers():
            wrapt.wrap_function_wrapper(owner, name, wrapper)

    def _uninstrument(self, **_kwargs: Any) -> None:
        for owner, name, _wrapper in self._wrappers():
            unwrap(owner, name)
