"""APScheduler 3: what it schedules (`scheduler`), how its executors run it (`executor`), what a job says of itself (`jobs`).

Everything is wrapped on its classes, so a scheduler that was made, or even started, before is observed too.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection
from typing import Any

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.instrumentation.utils import unwrap

from otel_kit.guard import guard
from otel_kit.integrations.apscheduler import executor, pool, scheduler, stores
from otel_kit.lifecycle import lifecycle

#: Each of them has a name of its own for the two functions that run a job; some need a library that may be missing.
_EXECUTORS = ("base", "base_py3", "asyncio", "debug", "gevent", "pool", "tornado", "twisted")


class APSchedulerInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments APScheduler 3: every scheduler and every executor of its own."""

    _observing = False

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("apscheduler >= 3.10, < 4",)

    def _instrument(self, **_kwargs: Any) -> None:
        self._observing = True
        lifecycle.on_child("apscheduler", scheduler.reset_after_fork)
        for module, name, wrapper in _METHODS:
            wrapt.wrap_function_wrapper(module, name, wrapper)
        for name in _EXECUTORS:
            wrapt.register_post_import_hook(self._observe, f"apscheduler.executors.{name}")

    def _observe(self, module: Any) -> None:
        if self._observing:
            with guard(f"apscheduler: observing {module.__name__}"):
                for name, observed in _FUNCTIONS.items():
                    if hasattr(module, name):
                        setattr(module, name, observed(getattr(module, name)))

    def _uninstrument(self, **_kwargs: Any) -> None:
        self._observing = False
        for module, name, _wrapper in _METHODS:
            owner, method = name.split(".")
            unwrap(getattr(importlib.import_module(module), owner), method)
        for name in _EXECUTORS:
            module_ = sys.modules.get(f"apscheduler.executors.{name}")
            for function in _FUNCTIONS:
                observed = getattr(module_, function, None)
                if observed is not None:
                    setattr(module_, function, executor.plain(observed))
        scheduler.forget()


_METHODS: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("apscheduler.schedulers.base", "BaseScheduler._process_jobs", scheduler.process_jobs),
    ("apscheduler.schedulers.base", "BaseScheduler._real_add_job", scheduler.real_add_job),
    ("apscheduler.schedulers.base", "BaseScheduler.modify_job", scheduler.modify_job),
    ("apscheduler.schedulers.base", "BaseScheduler._dispatch_event", scheduler.dispatch_event),
    ("apscheduler.job", "Job.__setstate__", stores.set_state),
    ("apscheduler.executors.base", "BaseExecutor.submit_job", executor.submit_job),
    ("apscheduler.executors.base", "BaseExecutor._run_job_success", pool.run_job_success),
    ("apscheduler.executors.base", "BaseExecutor._run_job_error", pool.run_job_error),
    ("apscheduler.executors.pool", "ProcessPoolExecutor._do_submit_job", pool.do_submit_job),
)
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "run_job": executor.RunJob.around,
    "run_coroutine_job": executor.around_coroutines,
}
