"""What a forked child does with the connections, locks and threads that it was born with: it leaves them to its parent."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakSet

from otel_kit.guard import guard
from otel_kit.lifecycle import lifecycle


class Forked(Protocol):
    """Something that a fork copies and that only one of the two may go on with."""

    def after_fork(self) -> None:
        """Begin anew, in the child."""
        ...


_followed: WeakSet[Forked] = WeakSet()


def follow(each: Forked) -> None:
    """Have ``after_fork`` called in every forked child for as long as somebody else holds ``each``."""
    _followed.add(each)
    lifecycle.on_child("sqlalchemy_jobs", _after_fork)


def _after_fork() -> None:
    for each in list(_followed):
        with guard("table: leaving a connection to the parent"):
            each.after_fork()
