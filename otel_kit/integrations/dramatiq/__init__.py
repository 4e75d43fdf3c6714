"""Dramatiq: who publishes (`producer`), who runs (`worker`), what waits (`queues`), what is noise (`broker`)."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from otel_kit.guard import guard
from otel_kit.integrations.dramatiq import broker, producer, worker


class DramatiqInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments Dramatiq: every broker, made before or after, its producers and its workers."""

    _on = False

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("dramatiq >= 1.17, < 3",)

    def _instrument(self, **_kwargs: Any) -> None:
        self._on = True
        # Dramatiq is imported only by those who use it, and each broker only by its own users.
        for module in sorted({module for module, _name, _wrapper in _WRAPPED}):
            wrapt.register_post_import_hook(self._imported, module)

    def _imported(self, module: Any) -> None:
        if not self._on:
            return
        for owner, name, wrapper in _WRAPPED:
            if owner == module.__name__:
                with guard(f"dramatiq: wrapping {name}"):
                    _wrap(module, name, wrapper)
        if module.__name__ == "dramatiq.broker":
            for each in _kinds(module.Broker):
                _cover(each)

    def _uninstrument(self, **_kwargs: Any) -> None:
        self._on = False
        for module, name, _wrapper in _WRAPPED:
            if module in sys.modules:
                _unwrap(*_resolve(sys.modules[module], name))
        if "dramatiq.broker" in sys.modules:
            base: Any = importlib.import_module("dramatiq.broker").Broker
            for each in _kinds(base):
                _unwrap(each, "enqueue")


def _made(wrapped: Callable[..., Any], made: Any, args: Any, kwargs: Any) -> Any:
    """A broker is made: its class, or one between, may have been written after all others were covered."""
    with guard("dramatiq: a broker's class"):
        for each in type(made).__mro__:
            if any(base.__module__ == "dramatiq.broker" for base in each.__mro__[1:]):
                _cover(each)
    return wrapped(*args, **kwargs)


def _cover(kind: type) -> None:
    if "enqueue" in vars(kind) and not isinstance(vars(kind)["enqueue"], wrapt.ObjectProxy):
        wrapt.wrap_function_wrapper(kind, "enqueue", producer.enqueue)


def _kinds(base: Any) -> Iterator[type]:
    """All classes derived from it so far."""
    for each in base.__subclasses__():
        yield each
        yield from _kinds(each)


#: The consumer's class is called so in 1.x, and is still known by that name in 2.x.
_CONSUMER = "_ConsumerThread"
_WRAPPED: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("dramatiq.broker", "Broker.__init__", _made),
    ("dramatiq.broker", "Broker.emit_before", worker.emit_before),
    ("dramatiq.broker", "Broker.emit_after", worker.emit_after),
    ("dramatiq.message", "Message.decode", worker.decode),
    ("dramatiq.worker", f"{_CONSUMER}.handle_delayed_messages", worker.handle_delayed_messages),
    ("dramatiq.brokers.redis", "RedisBroker._dispatch", broker.quiet),
)


def _resolve(module: Any, name: str) -> tuple[Any, str]:
    *path, last = name.split(".")
    return functools.reduce(getattr, path, module), last


def _wrap(module: Any, name: str, wrapper: Callable[..., Any]) -> None:
    owner, last = _resolve(module, name)
    # Registered twice where it was switched off and on again before the module came.
    if not isinstance(vars(owner)[last], wrapt.ObjectProxy):
        wrapt.wrap_function_wrapper(owner, last, wrapper)


def _unwrap(owner: Any, name: str) -> None:
    found = vars(owner).get(name)
    if isinstance(found, wrapt.ObjectProxy):
        setattr(owner, name, found.__wrapped__)
