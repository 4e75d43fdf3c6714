"""RQ's own Redis traffic (waiting, heartbeats, registries, maintenance), which makes no spans: send and process tell it.

A worker is silent as a whole, since it is its loop that talks; what the application does inside it is heard again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.instrumentation.utils import suppress_instrumentation

#: The second is upstream's older spelling, which is still looked at.
_KEYS = (_SUPPRESS_INSTRUMENTATION_KEY, "suppress_instrumentation")


def silent(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    """Around RQ's own work: what it does with Redis makes no spans."""
    with suppress_instrumentation():
        return wrapped(*args, **kwargs)


@contextmanager
def hearing() -> Iterator[None]:
    """The application's turn, however silent its surroundings are."""
    context = otel_context.get_current()
    for key in _KEYS:
        context = otel_context.set_value(key, False, context)
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


def heard(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    """Around the application's callbacks and exception handlers, which RQ calls."""
    with hearing():
        return wrapped(*args, **kwargs)
