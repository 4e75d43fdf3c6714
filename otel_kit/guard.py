"""The one guard between our faults and the application."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

_logger = logging.getLogger(__name__)
# Reentrant: a signal handler may meet a fault while its own thread is counting one.
_lock = threading.RLock()
_faults: Counter[str] = Counter()
#: Exceptions that a signal handler raises wherever the main thread happens to be: a framework's time limits. They are meant
#: for the application's code, and one that strikes while ours runs must get there.
_INTERRUPTS: Final = frozenset({"billiard.exceptions.SoftTimeLimitExceeded", "rq.timeouts.BaseTimeoutException"})


def _after_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # a thread of the parent's may have held it


os.register_at_fork(after_in_child=_after_in_child)


def _under_pytest() -> bool:
    """Whether pytest runs in this process, and is not merely imported, as some libraries do in production.

    pytest sets PYTEST_VERSION while it runs (since 8.2). Programs that a test starts inherit the variable but import no
    pytest: they behave as in production.
    """
    return "PYTEST_VERSION" in os.environ and "pytest" in sys.modules


def _interrupts(error: Exception) -> bool:
    return any(f"{kind.__module__}.{kind.__qualname__}" in _INTERRUPTS for kind in type(error).__mro__)


@contextmanager
def guard(cause: str) -> Iterator[None]:
    """Run a block whose failure must never reach the application.

    An exception is swallowed, counted under ``cause`` and logged with its traceback the first time that cause is seen.
    Where pytest runs in this very process it is raised again, so that a test cannot pass over a fault of ours; a program
    that a test starts behaves as in production. Works as a context manager and as a decorator.

    Args:
        cause: What was being done, in words that name the place (``"celery: task_prerun"``).
    """
    try:
        yield
    except Exception as error:
        if _interrupts(error):
            raise
        with _lock:
            _faults[cause] += 1
            first = _faults[cause] == 1
        if first:
            _logger.exception(
                "otel-kit: %s failed; the application is not affected, later ones are only counted", cause
            )
        if _under_pytest():
            raise


def faults() -> Mapping[str, int]:
    """How often each cause has failed in this process."""
    with _lock:
        return dict(_faults)
