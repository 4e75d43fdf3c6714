"""What must happen when the process forks or ends: one registry, and a deadline on every way out.

The SDK's own shutdown waits up to 30 s for each signal when the collector does not answer (opentelemetry-python#4568),
so its calls run on threads of ours and the caller waits for them no longer than its budget. The threads are started
while the process is healthy: since Python 3.12 none can be started during interpreter shutdown.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType

from otel_kit.guard import guard

Flush = Callable[[float], None]


@dataclass(slots=True)
class _Flusher:
    """A parked daemon thread that runs one function when told to."""

    name: str
    work: Flush
    _asked: threading.Event = field(default_factory=threading.Event)
    _done: threading.Event = field(default_factory=threading.Event)
    _timeout: float = 0.0

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"otel-kit-{self.name}", daemon=True).start()

    def ask(self, timeout: float) -> None:
        self._timeout = timeout
        self._done.clear()
        self._asked.set()

    def wait(self, timeout: float) -> bool:
        return self._done.wait(timeout)

    def _run(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            with guard(f"flushing {self.name}"):
                self.work(self._timeout)
            self._done.set()


class Lifecycle:
    """The registry. One instance serves the process: `lifecycle`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flushers: dict[str, Flush] = {}
        self._parked: dict[str, _Flusher] = {}
        self._in_child: dict[str, Callable[[], None]] = {}
        self._at_exit: Callable[[], None] | None = None
        self._on_close: list[Callable[[], None]] = []
        #: When this process was forked off (monotonic seconds), None where it was not.
        self.forked_at: float | None = None
        self.closing = False
        #: Seconds that the end of a process may wait, in all.
        self.timeout = 5.0
        os.register_at_fork(after_in_child=self._after_in_child)
        atexit.register(self._exit)

    def on_flush(self, name: str, work: Flush) -> None:
        """Have ``work(timeout_seconds)`` called on a thread of its own at every flush; a name is registered once."""
        with self._lock:
            self._flushers[name] = work
            self._park(name, work)

    def on_child(self, name: str, work: Callable[[], None]) -> None:
        """Have ``work`` called in a forked child, before anything else runs there."""
        with self._lock:
            self._in_child[name] = work

    def on_exit(self, work: Callable[[], None]) -> None:
        """Have ``work`` called at the interpreter's normal end, in the process that registered it or a fork of it."""
        self._at_exit = work

    def watch_sigterm(self) -> None:
        """Run the exit work at SIGTERM too, unless the application handles that signal itself.

        A process that leaves by the signal's default action runs no exit hooks, and neither does uvicorn: it stops in
        peace and then raises the signal once more against itself. Only the main thread may set a handler.
        """
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminated)

    def _terminated(self, signum: int, _frame: FrameType | None) -> None:
        with guard("leaving at SIGTERM"):
            self._exit()
        # The exit status must still say that a signal ended us.
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    def flush(self, timeout: float) -> bool:
        """Flush everything at once and wait at most ``timeout`` seconds in all.

        Returns:
            Whether all of it finished in time.
        """
        with self._lock:
            parked = list(self._parked.values())
        deadline = time.monotonic() + timeout
        for flusher in parked:
            flusher.ask(timeout)
        # Every one is waited for, also after a first has missed the deadline.
        finished = [flusher.wait(max(0.0, deadline - time.monotonic())) for flusher in parked]
        return all(finished)

    def on_close(self, work: Callable[[], None]) -> None:
        """Have ``work`` called by `close`, latest first: what was put in place is taken away."""
        self._on_close.append(work)

    def close(self, timeout: float) -> bool:
        """Say goodbye: `closing` is true from here on, everything is flushed, what was put in place is taken away."""
        self.closing = True
        delivered = self.flush(timeout)
        while self._on_close:
            with guard("closing"):
                self._on_close.pop()()
        return delivered

    def _park(self, name: str, work: Flush) -> None:
        flusher = _Flusher(name, work)
        flusher.start()
        self._parked[name] = flusher

    def _after_in_child(self) -> None:
        with guard("preparing a forked child"):
            self._lock = threading.Lock()  # the parent may have held it
            self.forked_at = time.monotonic()
            self._parked.clear()
            for name, work in self._flushers.items():
                self._park(name, work)
            for name, prepare in self._in_child.items():
                with guard(f"preparing {name} in a forked child"):
                    prepare()

    def _exit(self) -> None:
        if self._at_exit is not None:
            self._at_exit()


lifecycle = Lifecycle()
