"""What a place for undelivered payloads offers."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol, Self

from otel_kit.telemetry.payload import Cause, Payload, Signal

#: Told what was given up: of which signal, why, and how many items.
OnDrop = Callable[[Signal, Cause, int], None]

#: Bytes that are kept where nobody says otherwise.
LIMIT: Final = 64 * 1024 * 1024
#: Seconds after which no backend takes it any more: their windows for late data are 6 h (Prometheus, Tempo) and half of
#: Loki's 12 h, less an hour for the way.
MAX_AGE: Final = 5 * 3600.0


class Claim(Protocol):
    """The sole right to replay what a store keeps. A context manager; it also ends with the process, however that ends."""

    def next(self) -> Payload | None:
        """The oldest payload that this claim has not looked at yet, None where there is no more.

        Payloads that are too old are removed, unreadable ones are set aside, and both are counted, on the way.
        """

    def done(self) -> None:
        """The payload handed out last is settled, delivered or given up: remove it."""

    def close(self) -> None:
        """Let others replay. What was not settled stays."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Store(Protocol):
    """Keeps the payloads of one signal for one destination. Any thread may call; nothing here raises ``OSError``."""

    def put(self, payload: Payload) -> bool:
        """Keep ``payload``, and give up the oldest where that is what it takes.

        Returns:
            Whether it is kept. Where not, nothing was counted: that is the caller's.
        """

    def claim(self) -> Claim | None:
        """The right to replay, None where nothing is kept or another process or thread has it."""

    def size(self) -> int:
        """Bytes kept now."""

    def changed(self) -> bool:
        """Whether something may have come since this was last asked; the first time, whether anything is there.

        It costs one look at the directory. It may say yes for nothing. What another process puts within the same tick of
        the file system's clock as something that was seen already is told two seconds later.
        """

    def reset_after_fork(self) -> None:
        """To be called in a forked child: what the parent holds is not the child's."""
