"""The one guard between our faults and the application."""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_faults: Counter[str] = Counter()


@contextmanager
def guard(cause: str) -> Iterator[None]:
    """Run a block whose failure must never reach the application.

    An exception is swallowed, counted under ``cause`` and logged with its traceback the first time that cause is seen.
    Inside a pytest process it is raised again, so that a test cannot pass over a fault of ours. Works as a context
    manager and as a decorator.

    Args:
        cause: What was being done, in words that name the place (``"celery: task_prerun"``).
    """
    try:
        yield
    except Exception:
        with _lock:
            _faults[cause] += 1
            first = _faults[cause] == 1
        if first:
            _logger.exception(
                "otel-kit: %s failed; the application is not affected, later ones are only counted", cause
            )
        # A worker that a test starts is a process of its own and behaves as in production.
        if "pytest" in sys.modules:
            raise


def faults() -> Mapping[str, int]:
    """How often each cause has failed in this process."""
    with _lock:
        return dict(_faults)
