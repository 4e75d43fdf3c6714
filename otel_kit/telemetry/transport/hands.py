"""Threads for what may block for longer than its caller may wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final

#: Threads that may be stuck at once, in a resolver or a credential provider, before an attempt is not even begun.
MOST_STUCK: Final = 4


class Hands:
    """Threads that do what may block for longer than its caller may wait: name resolution, connecting, foreign code.

    Threads are kept and used again; they are daemons, so a stuck one never holds up the end of the process.
    """

    def __init__(self) -> None:
        # Appending and popping need no lock, so a signal handler cannot meet one that its own thread holds.
        self._idle: list[queue.SimpleQueue[tuple[Callable[[], None], threading.Event] | None]] = []
        self._busy: set[object] = set()
        self._closed = False

    @property
    def stuck(self) -> bool:
        """Whether so many are at work that more would be of no use."""
        return len(self._busy) >= MOST_STUCK

    def start(self, work: Callable[[], None], over: threading.Event) -> bool:
        """Begin ``work``, which never raises, and set ``over`` after it; False where no thread can be started."""
        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = queue.SimpleQueue()
            try:
                threading.Thread(target=self._serve, args=(inbox,), name="otel-kit-transport", daemon=True).start()
            except RuntimeError:  # at the interpreter's end, or at the limit of threads
                return False
        self._busy.add(inbox)
        inbox.put((work, over))
        return True

    def close(self) -> None:
        """Let the threads end."""
        self._closed = True
        while self._idle:
            try:
                self._idle.pop().put(None)
            except IndexError:
                return

    def _serve(self, inbox: queue.SimpleQueue[tuple[Callable[[], None], threading.Event] | None]) -> None:
        while (given := inbox.get()) is not None:
            work, over = given
            work()
            self._busy.discard(inbox)
            self._idle.append(inbox)
            if self._closed:
                self.close()
            # Only now: the caller's next attempt finds this thread idle.
            over.set()
