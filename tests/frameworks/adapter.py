"""What the common suite has to know of a framework: how to start its worker, and what it cannot do.

The application itself is a module of real code in ``apps/``, which the suite copies into the programs' directory as
``app.py``. It reads BROKER, calls `otel_kit.configure`, registers the jobs of `JOBS` and offers

    publish(name, *arguments, delay=None, priority=None)

which hands a job to the broker by its name, in the framework's own usual way, and waits for nothing else.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

#: The jobs that every application has.
#: succeed(number=0) returns; fail() raises ZeroDivisionError("on purpose"); retry_once() raises ConnectionError("not yet") at
#: its first attempt and succeeds at the second, after about 0.3 s or the least that the framework can; slow(seconds) sleeps;
#: die() kills its own process with SIGKILL; nested() publishes succeed; periodic() runs by the framework's own schedule
#: every second, or the least that it can, where PERIODIC=1 is set.
JOBS = ("succeed", "fail", "retry_once", "slow", "die", "nested", "periodic")


class Framework(ABC):
    """One framework, or one way of running its workers.

    Attributes:
        name: Of the adapter, as in test ids.
        title: As in the table of the documentation.
        app: The application's file in ``apps/``.
        system: `messaging.system` of its jobs; ``""`` where there is no broker.
        queue: `messaging.destination.name` of its jobs.
        slots: Jobs that one worker, as started here, runs at the same time.
        backoff: Seconds between a failed attempt and the wanted start of the next, in ``retry_once``; None where nobody can tell.
        prefetch: Jobs that a busy worker takes out of the queue beyond those that it runs.
        lacks: Capabilities (see test_suite.py) that it does not have, and why: one sentence that users will read.
        watchers: Whether only another live process can tell that a worker has died.
        broker: ``redis`` or ``postgres``: which server the suite hands it in BROKER.
    """

    name: str
    title: str
    app: str
    system: str = "redis"
    queue: str = "suite"
    slots: int = 1
    backoff: float | None = 0.3
    prefetch: int = 0
    lacks: Mapping[str, str] = {}
    watchers: bool = False
    broker: str = "redis"

    def python(self) -> str:
        """The interpreter that its programs run with."""
        return sys.executable

    def environment(self) -> Mapping[str, str]:
        """More variables for its programs."""
        return {}

    @abstractmethod
    def command(self) -> Sequence[str]:
        """How a worker is started, in the directory with ``app.py``."""

    def companions(self) -> Sequence[Sequence[str]]:
        """Programs beside the worker: a scheduler, a beat. They run all the time; only they get PERIODIC=1, if there are any."""
        return ()

    @abstractmethod
    def ready(self, output: str) -> bool:
        """Whether a worker that has printed this takes jobs."""

    def companion_ready(self, output: str) -> bool:
        """Whether a companion that has printed this is at work."""
        return True

    def poison(self, broker: str) -> None:
        """Put something into the queue that is no message of this framework."""
        raise NotImplementedError

    #: How many periodic runs are awaited, and for how long (seconds).
    periodic_runs: int = 2
    periodic_within: float = 30.0
