"""What must happen when the process forks or ends: one registry, and a deadline on every way out.

The SDK's own shutdown waits up to 30 s for each signal when the collector does not answer (opentelemetry-python#4568),
so its calls run on threads of ours and the caller waits for them no longer than its budget. The threads are started
while the process is healthy: since Python 3.12 none can be started during interpreter shutdown.

A signal handler runs on the main thread in the middle of whatever that was doing, this module included. So there is no
lock here that it could find held: requests travel through `queue.SimpleQueue`, whose ``put`` is reentrant, each with a
completion of its own, and the registry is changed by single operations on dicts and lists only.
"""

from __future__ import annotations

import atexit
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from otel_kit.guard import guard

#: Takes seconds; False where it could not finish its work in them.
Flush = Callable[[float], bool | None]

#: Seconds beyond the budget in which the exit work may take away what was put in place.
_GRACE = 0.5
#: After every finalizer of the application's and of multiprocessing's own (its lowest is -100): they may log.
_AFTER_ALL_OTHERS = -1000


class _Request:
    """One run that somebody asked for. Only the one who asked waits for it, so its lock is never found half way."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._succeeded = False
        self._pending = threading.Lock()
        self._pending.acquire()

    def complete(self, succeeded: bool) -> None:
        self._succeeded = succeeded
        self._pending.release()

    def wait(self, timeout: float) -> bool:
        return self._pending.acquire(timeout=max(0.0, timeout)) and self._succeeded


class _Parked:
    """A daemon thread that waits to be asked for a run of one function."""

    def __init__(self, name: str, work: Flush) -> None:
        self._name = name
        self._work = work
        self._asked: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=f"otel-kit-{name}", daemon=True).start()

    def ask(self, timeout: float) -> _Request:
        request = _Request(timeout)
        self._asked.put(request)
        return request

    def _run(self) -> None:
        while True:
            asked = [self._asked.get()]
            # One run serves all who asked before it began: no backlog grows behind a collector that is slow.
            while not self._asked.empty():
                asked.append(self._asked.get())
            succeeded = False
            try:
                with guard(f"running {self._name}"):
                    succeeded = self._work(max(request.timeout for request in asked)) is not False
            finally:
                for request in asked:
                    request.complete(succeeded)


class Lifecycle:
    """The registry. One instance serves the process: `lifecycle`."""

    def __init__(self) -> None:
        self._flushers: dict[str, Flush] = {}
        self._parked: dict[str, _Parked] = {}
        self._in_child: dict[str, Callable[[], None]] = {}
        self._on_renewal: list[Callable[[], None]] = []
        self._at_exit: Callable[[], None] | None = None
        self._exiting: _Parked | None = None
        self._on_close: list[Callable[[], None]] = []
        self._terminating = False
        self._known_to_multiprocessing = False
        self._finalizer: Any = None
        #: When this process was forked off (monotonic seconds), None where it was not.
        self.forked_at: float | None = None
        self._forked_by = 0
        #: Whether this process is one of a pool whose main process counts what it does.
        self.pooled = False
        self.closing = False
        #: Seconds that the end of a process may wait, in all.
        self.timeout = 5.0
        self._follows_forks = False
        atexit.register(self._exit)

    def on_flush(self, name: str, work: Flush) -> None:
        """Have ``work(timeout_seconds)`` called on a thread of its own at every flush; a name is registered once."""
        self._flushers[name] = work
        self._park(name, work)

    def on_child(self, name: str, work: Callable[[], None]) -> None:
        """Have ``work`` called in a forked child, before anything else runs there."""
        self._in_child[name] = work

    def follow_forks(self) -> None:
        """From here on prepare every forked child.

        To be called when the providers are made: hooks run in the order of their registration, and the SDK's, which give its
        providers fresh locks, have to run before ours, which ask for these.
        """
        if not self._follows_forks:
            self._follows_forks = True
            os.register_at_fork(after_in_child=self._after_in_child)

    def on_renewal(self, work: Callable[[], None]) -> None:
        """Have ``work`` called by `renew`."""
        self._on_renewal.append(work)

    def renew(self) -> None:
        """Start all threads anew, and give them new queues and locks.

        To be called when what `threading` and `queue` offer has been replaced, by greenlets for instance: one of the new
        kind that waits in a queue of the old kind holds up the whole process.
        """
        with guard("renewing threads"):
            self._park_all()
            for work in self._on_renewal:
                with guard("renewing threads"):
                    work()

    def on_exit(self, work: Callable[[], None]) -> None:
        """Have ``work`` called at the interpreter's normal end, in the process that registered it or a fork of it.

        It runs on a thread of its own, and the end waits for it no longer than `timeout` and half a second.
        """
        self._at_exit = work
        self._exiting = _Parked("exit", self._leave)
        self._join_multiprocessing()

    def watch_sigterm(self) -> None:
        """Run the exit work at SIGTERM too, unless the application handles that signal itself.

        A process that leaves by the signal's default action runs no exit hooks, and neither does uvicorn: it stops in
        peace and then raises the signal once more against itself. Only the main thread may set a handler.
        """
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminated)

    def _terminated(self, signum: int, _frame: FrameType | None) -> None:
        if self._terminating:
            return  # sent again: this call is nested in the first one's wait and must not prolong it
        self._terminating = True
        try:
            self._wait_for_exit_work()
        finally:
            # Come what may, the process dies, and its exit status says that a signal ended it.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def flush(self, timeout: float) -> bool:
        """Flush everything at once and wait at most ``timeout`` seconds in all.

        Returns:
            Whether all of it finished in time and without a fault.
        """
        deadline = time.monotonic() + timeout
        asked = [parked.ask(timeout) for parked in list(self._parked.values())]
        # Every one is waited for, also after a first has missed the deadline.
        finished = [request.wait(deadline - time.monotonic()) for request in asked]
        return all(finished)

    @property
    def outlived(self) -> bool:
        """Whether the process that this one was forked from, where the kit runs too, is still there."""
        return self.forked_at is not None and os.getppid() == self._forked_by

    def on_close(self, work: Callable[[], None]) -> None:
        """Have ``work`` called by `close`, latest first: what was put in place is taken away."""
        self._on_close.append(work)

    def close(self, timeout: float) -> bool:
        """Say goodbye: `closing` is true from here on, everything is flushed, what was put in place is taken away.

        Further calls wait for the one last flush and start no other.
        """
        self.closing = True
        delivered = self.flush(timeout)
        while True:
            try:
                work = self._on_close.pop()
            except IndexError:
                return delivered
            with guard("closing"):
                work()

    def _park(self, name: str, work: Flush) -> None:
        ended = False

        def run(timeout: float) -> bool | None:
            nonlocal ended
            if ended:
                return None
            last = self.closing
            finished = work(timeout)
            ended = last
            return finished

        self._parked[name] = _Parked(name, run)

    def _after_in_child(self) -> None:
        with guard("preparing a forked child"):
            self.forked_at = time.monotonic()
            self._forked_by = os.getppid()
            self._terminating = False
            self._park_all()
            for name, prepare in self._in_child.items():
                with guard(f"preparing {name} in a forked child"):
                    prepare()

    def _park_all(self) -> None:
        self._parked.clear()
        for name, work in self._flushers.items():
            self._park(name, work)
        if self._at_exit is not None:
            self.on_exit(self._at_exit)

    def _join_multiprocessing(self) -> None:
        """Take part in the end of a multiprocessing child, which leaves by os._exit and may run no exit hooks.

        What it does run are the finalizers that are registered after its start: that drops those it was forked with and
        then calls whoever asked to be called after a fork. Billiard shares both registries. Nobody need import
        multiprocessing early: whatever starts such a child has loaded it when we get here, in the child.
        """
        util, process = sys.modules.get("multiprocessing.util"), sys.modules.get("multiprocessing.process")
        if util is None or process is None:
            return
        if not self._known_to_multiprocessing:
            util.register_after_fork(self, Lifecycle._finalize)
            self._known_to_multiprocessing = True
        if process.parent_process() is not None:  # started already: a child that calls configure() itself
            self._finalize()

    def _finalize(self) -> None:
        if self._finalizer is not None:
            self._finalizer.cancel()  # the parent's, or our own from a moment ago
        self._finalizer = sys.modules["multiprocessing.util"].Finalize(None, self._exit, exitpriority=_AFTER_ALL_OTHERS)

    def _exit(self) -> None:
        with guard("leaving"):
            self._wait_for_exit_work()

    def _wait_for_exit_work(self) -> None:
        if self._exiting is not None:
            self._exiting.ask(self.timeout).wait(self.timeout + _GRACE)

    def _leave(self, timeout: float) -> bool | None:
        deadline = time.monotonic() + timeout
        if self._at_exit is not None:
            self._at_exit()
        if self.closing:
            # The application may be closing by itself, in the thread that a signal has stopped: wait for that flush.
            return self.close(deadline - time.monotonic())
        return None


lifecycle = Lifecycle()
