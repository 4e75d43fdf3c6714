"""The SDK's locks that the application's threads take, made reentrant.

A finalizer may run wherever memory is allocated, and a signal handler between any two instructions: in the middle of the
SDK, on the thread that holds its lock. What they log, count or record would wait for that thread, which is their own, for
ever. A reentrant lock lets them pass; the worst that follows is one measurement that is not added.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

#: Those that make their locks by this name: loggers are looked up behind one, and measurements are added up behind others.
_MODULES: Final = (
    "opentelemetry.sdk._logs._internal",
    "opentelemetry.sdk.metrics._internal",
    "opentelemetry.sdk.metrics._internal._view_instrument_match",
    "opentelemetry.sdk.metrics._internal.aggregation",
    "opentelemetry.sdk.metrics._internal.exemplar.exemplar_reservoir",
    "opentelemetry.sdk.metrics._internal.measurement_consumer",
)


def install() -> Callable[[], None]:
    """Have providers that are made from here on use reentrant locks; the function returned takes that back."""
    replaced: list[tuple[Any, Any]] = []
    for name in _MODULES:
        try:
            module = import_module(name)
        except ImportError:  # another SDK has it elsewhere, or no such lock
            continue
        lock = getattr(module, "Lock", None)
        if lock is not None:
            replaced.append((module, lock))
            module.Lock = threading.RLock  # type: ignore[attr-defined]

    def undo() -> None:
        for module, lock in replaced:
            module.Lock = lock

    return undo
