"""RQ: who publishes (`producer`), runs (`horse`), counts (`supervision`) and waits (`worker`); what is noise (`silence`)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection
from typing import Any

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from otel_kit.guard import guard
from otel_kit.integrations.rq import abandoned, horse, producer, silence, supervision, worker
from otel_kit.telemetry import logs

_Wrapper = Callable[..., Any]


class RQInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments RQ: producers, workers of every class, its scheduler and its cron."""

    def __init__(self) -> None:
        super().__init__()
        if not hasattr(self, "_wrapped"):  # there is one of it, and it is initialised at every call
            self._wrapped: list[tuple[Any, str, Any]] = []
            self._on = False
            self._hooked = False

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("rq >= 2.6, < 4",)

    def _instrument(self, **_kwargs: Any) -> None:
        self._on = True
        if self._hooked:  # by an earlier call: modules that came meanwhile were passed over
            for name in _WRAPPERS:
                if name in sys.modules:
                    self._wrap(name, sys.modules[name])
        else:
            self._hooked = True
            # Imported only by those processes that publish, work, schedule. Those that are loaded are wrapped at once.
            for name in _WRAPPERS:
                wrapt.register_post_import_hook(functools.partial(self._wrap, name), name)
        # RQ hands every failed job's arguments to the log as extra fields.
        logs.hide_field("rq", "arguments")
        logs.hide_field("rq", "kwargs")

    def _wrap(self, name: str, module: Any) -> None:
        if not self._on:
            return
        for path, wrapper in _WRAPPERS[name]:
            with guard(f"rq: wrapping {name}.{path}"):
                owner, attribute = module, path
                if "." in path:
                    class_name, attribute = path.split(".")
                    owner = getattr(module, class_name, None)
                # Not every version has all of them, and an inherited method is wrapped where it is defined.
                if owner is None or attribute not in vars(owner):
                    continue
                original = vars(owner)[attribute]
                wrapt.wrap_function_wrapper(module, path, wrapper)
                self._wrapped.append((owner, attribute, original))

    def _uninstrument(self, **_kwargs: Any) -> None:
        self._on = False
        while self._wrapped:
            owner, attribute, original = self._wrapped.pop()
            setattr(owner, attribute, original)


_ABANDONED = abandoned.cleanup("RQ found the job started and its worker silent")
_STUCK = abandoned.cleanup("RQ found the job taken from its queue and never started: its worker has died")

#: Wrappers by the module that RQ defines what they wrap in; its second half has some in other places than its third.
_WRAPPERS: dict[str, tuple[tuple[str, _Wrapper], ...]] = {
    "rq.queue": (
        ("Queue.enqueue_job", producer.enqueue_job),
        ("Queue.schedule_job", producer.schedule_job),
        ("Queue.enqueue_many", producer.enqueue_many),
        ("Queue.create_job", producer.create_job),
        ("Queue._enqueue_job", producer.enqueue_anew),
        ("Queue._enqueue_rate_limited_job", producer.enqueue_anew),
        ("Queue.enqueue_dependents", producer.because(None)),
        ("Queue.run_job", horse.run_job),
        ("Queue.dequeue_any", worker.dequeue_any),
        ("Queue.from_queue_key", worker.from_queue_key),
        ("execute_success_callback", silence.heard),
        ("execute_failure_callback", silence.heard),
    ),
    "rq.group": (("Group.enqueue_many", producer.holding),),
    "rq.repeat": (("Repeat.schedule", producer.because(producer.REPEAT)),),
    "rq.job": (
        ("Job._execute", horse.execute),
        ("Job.retry", producer.because(producer.RETRY)),
        ("Job.retry", worker.retry),
        ("Job._handle_failure", worker.handle_failure),
        ("Job.set_status", worker.set_status),
        ("Job.cancel", worker.cancel),
        ("Job.fetch", worker.fetch),
        ("Job.execute_success_callback", silence.heard),
        ("Job.execute_failure_callback", silence.heard),
        ("Job.execute_stopped_callback", silence.heard),
    ),
    "rq.registry": (
        ("BaseRegistry.requeue", producer.because(producer.REQUEUE)),
        ("StartedJobRegistry.cleanup", _ABANDONED),
        ("execute_failure_callback", silence.heard),
    ),
    "rq.intermediate_queue": (("IntermediateQueue.cleanup", _STUCK),),
    "rq.worker": (
        ("BaseWorker.__init__", silence.silent),
        ("BaseWorker.work", silence.silent),
        ("BaseWorker.bootstrap", worker.bootstrap),
        ("BaseWorker.heartbeat", worker.heartbeat),
        ("BaseWorker.perform_job", horse.perform_job),
        ("BaseWorker.handle_exception", horse.handle_exception),
        ("BaseWorker.handle_job_retry", producer.because(producer.RETRY)),
        ("BaseWorker.handle_job_retry", horse.handle_job_retry),
        ("BaseWorker.handle_job_failure", supervision.job_failed),
        ("BaseWorker.handle_work_horse_killed", supervision.work_horse_killed),
        ("Worker.execute_job", supervision.execute_job),
        ("SpawnWorker.fork_work_horse", supervision.spawn),
    ),
    "rq.worker.base": (
        ("execute_success_callback", silence.heard),
        ("execute_failure_callback", silence.heard),
    ),
    "rq.worker.worker_classes": (("execute_stopped_callback", silence.heard),),
    "rq.scheduler": (("RQScheduler.work", silence.silent),),
    "rq.cron": (
        ("CronScheduler.start", silence.silent),
        ("CronJob.enqueue", producer.cron),
    ),
}
