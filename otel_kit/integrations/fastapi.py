"""FastAPI: every application in the process, however early it was created.

Upstream replaces the class `fastapi.FastAPI`, so it misses an application that exists already and a module that imported the
class first. Every application builds its middleware at its first request or start: there it is caught, whichever came first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.instrumentation.utils import unwrap

from otel_kit.guard import guard
from otel_kit.integrations.takeover import Takeover


def _build_middleware_stack(wrapped: Callable[..., Any], app: Any, args: Any, kwargs: Any) -> Any:
    if not getattr(app, "_is_instrumented_by_opentelemetry", False):
        with guard("fastapi: instrumenting an application"):
            from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor as Upstream

            # A span for every chunk received and sent is noise (opentelemetry-python-contrib#635).
            Upstream.instrument_app(app, exclude_spans=["receive", "send"])
            return app.build_middleware_stack()
    return wrapped(*args, **kwargs)


class FastAPIInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments FastAPI with upstream's middleware. Stands in for upstream's loader."""

    _takeover = Takeover("opentelemetry.instrumentation.fastapi", "FastAPIInstrumentor")

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("fastapi >= 0.92",)

    def _instrument(self, **_kwargs: Any) -> None:
        import fastapi
        import opentelemetry.instrumentation.fastapi  # noqa: F401  # missing: not wired, rather than broken later

        self._takeover.begin()
        wrapt.wrap_function_wrapper(fastapi.FastAPI, "build_middleware_stack", _build_middleware_stack)

    def _uninstrument(self, **_kwargs: Any) -> None:
        import fastapi

        unwrap(fastapi.FastAPI, "build_middleware_stack")
        self._takeover.end()
