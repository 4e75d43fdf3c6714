"""FastAPI: every application in the process, however early it was created.

Upstream replaces the class `fastapi.FastAPI`, so it misses an application that exists already and a module that imported the
class first. Every application builds its middleware at its first request or start: there it is caught, whichever came first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import wrapt
from opentelemetry.context import attach, detach
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.instrumentation.utils import unwrap

from otel_kit.guard import guard
from otel_kit.integrations.takeover import Takeover
from otel_kit.jobs.propagation import serving

_SEEN: Final = "otel_kit.measured"


def _build_middleware_stack(wrapped: Callable[..., Any], app: Any, args: Any, kwargs: Any) -> Any:
    if getattr(app, "_is_instrumented_by_opentelemetry", False):
        return wrapped(*args, **kwargs)
    with guard("fastapi: instrumenting an application"):
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor as Upstream

        # A span for every chunk received and sent is noise (opentelemetry-python-contrib#635).
        Upstream.instrument_app(app, exclude_spans=["receive", "send"])
    # Outside the guard: what the application's own middleware raises while it is built is the application's.
    return app.build_middleware_stack() if app._is_instrumented_by_opentelemetry else wrapped(*args, **kwargs)  # noqa: SLF001


async def _once_per_request(wrapped: Callable[..., Any], middleware: Any, args: Any, kwargs: Any) -> None:
    """A mounted application has middleware of its own: the request is measured by the outermost alone."""
    scope = args[0] if args else kwargs["scope"]
    if scope.get(_SEEN):
        await middleware.app(*args, **kwargs)
        return
    scope[_SEEN] = True
    token = attach(serving())
    try:
        await wrapped(*args, **kwargs)
    finally:
        detach(token)


class FastAPIInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments FastAPI with upstream's middleware. Stands in for upstream's loader."""

    _takeover = Takeover("opentelemetry.instrumentation.fastapi", "FastAPIInstrumentor")

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("fastapi >= 0.92",)

    def _instrument(self, **_kwargs: Any) -> None:
        import fastapi
        import opentelemetry.instrumentation.fastapi  # noqa: F401  # missing: not wired, rather than broken later
        from opentelemetry.instrumentation import asgi

        self._takeover.begin()
        wrapt.wrap_function_wrapper(asgi.OpenTelemetryMiddleware, "__call__", _once_per_request)
        wrapt.wrap_function_wrapper(fastapi.FastAPI, "build_middleware_stack", _build_middleware_stack)

    def _uninstrument(self, **_kwargs: Any) -> None:
        import fastapi
        from opentelemetry.instrumentation import asgi

        unwrap(asgi.OpenTelemetryMiddleware, "__call__")
        unwrap(fastapi.FastAPI, "build_middleware_stack")
        self._takeover.end()
