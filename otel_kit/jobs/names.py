"""Names as metrics may carry them: a bounded number, whatever a client makes up."""

from __future__ import annotations

import logging
import threading
from typing import Final

from otel_kit import catalogue
from otel_kit.telemetry.limits import cut

_logger = logging.getLogger(__name__)

#: What stands for all names beyond the limit, as `_OTHER` does for unknown HTTP methods in the semantic conventions.
OTHER: Final = "_OTHER"
#: Characters of a name that a label keeps.
_LONGEST: Final = 200


class Names:
    """Lets the first ``limit`` different names through and turns the rest into `OTHER`.

    First come, first kept: a name that has a series keeps it, so that no counter of a known job ever moves. Those that a
    worker announces at its start come first.

    Args:
        label: What they are names of.
        limit: How many.
    """

    def __init__(self, label: str, limit: int) -> None:
        self._label = label
        self.limit = limit
        self._known: dict[str, str] = {}
        self._overflow = 0
        self._lock = threading.RLock()

    def bounded(self, name: str) -> str:
        """The name as a label: itself, or `OTHER`."""
        known = self._known.get(name)
        return known if known is not None else self._first_seen(name)

    def _first_seen(self, name: str) -> str:
        with self._lock:
            if len(self._known) < self.limit:
                return self._known.setdefault(name, cut(name, _LONGEST))
            self._overflow += 1
            first = self._overflow == 1
        if first:
            _logger.warning(
                "otel-kit: more than %d different values of %s: metrics file the others under %s "
                "(OTEL_KIT_NAME_LIMIT; otel_kit.label.overflow counts them)",
                self.limit,
                self._label,
                OTHER,
            )
        return OTHER

    def reset_after_fork(self) -> None:
        """What overflowed before the fork is the parent's to report; the names stay known."""
        self._lock = threading.RLock()
        self._overflow = 0

    def overflow(self) -> tuple[str, int]:
        """The label, and how often a name did not fit."""
        return self._label, self._overflow


class Pairs:
    """Names in queues: both bounded, and their combinations too."""

    def __init__(self, names: Names, queues: Names) -> None:
        self._names = names
        self._queues = queues
        self._seen: set[tuple[str, str]] = set()

    def bounded(self, name: str, queue: str) -> tuple[str, str]:
        """Name and queue as labels."""
        pair = self._names.bounded(name), self._queues.bounded(queue)
        if pair in self._seen:
            return pair
        # A job is seldom in more than two queues; one that is in all of them is under attack.
        if len(self._seen) >= 2 * (self._names.limit + 1):
            return OTHER, OTHER
        self._seen.add(pair)
        return pair


#: Different names of jobs, of queues, of steps and of errors that are told apart unless somebody says otherwise.
DEFAULT_LIMIT: Final = 200

jobs = Names(catalogue.JOB_NAME, DEFAULT_LIMIT)
queues = Names(catalogue.MESSAGING_DESTINATION, DEFAULT_LIMIT)
steps = Names(catalogue.JOB_STEP, DEFAULT_LIMIT)
error_types = Names(catalogue.ERROR_TYPE, DEFAULT_LIMIT)
ALL: Final = (jobs, queues, steps, error_types)


def limit(number: int) -> None:
    """Tell at most so many names of each kind apart."""
    for each in ALL:
        each.limit = number
