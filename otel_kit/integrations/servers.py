"""Servers that take signals and threads into their own hands: uvicorn, and gevent below gunicorn.

None of it is telemetry: it keeps the end of the process, and our threads, as `otel_kit.lifecycle` needs them.
"""

from __future__ import annotations

import signal
from typing import Any

import wrapt

from otel_kit.guard import guard
from otel_kit.lifecycle import lifecycle


class _Signals(wrapt.ObjectProxy[Any]):
    """The module `signal` as a server sees it: where it leaves SIGTERM to the default action, the exit work is put there."""

    def signal(self, signum: int, handler: Any) -> Any:
        before = self.__wrapped__.signal(signum, handler)
        if signum == signal.SIGTERM:
            with guard("watching SIGTERM"):
                lifecycle.watch_sigterm()
        return before


def _uvicorn(module: Any) -> None:
    # At its end it puts back what it found, SIG_DFL in gunicorn's workers and in its own, and raises the signal once more:
    # the process would be gone in the middle of its last flush.
    with guard("following uvicorn"):
        module.signal = _Signals(module.signal)


def _gevent(module: Any) -> None:
    def patched(event: Any) -> None:
        if isinstance(event, module.GeventDidPatchAllEvent):
            lifecycle.renew()

    with guard("following gevent"):
        module.subscribers.append(patched)


def install() -> None:
    """Follow those that are loaded, now or later."""
    wrapt.register_post_import_hook(_uvicorn, "uvicorn.server")
    wrapt.register_post_import_hook(_gevent, "gevent.events")
