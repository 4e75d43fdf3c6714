"""From a packed request to the receiver, or to where it waits until the receiver answers again. One pipeline per signal.

A request is tried once. When the receiver cannot take it, it is kept (see `otel_kit.telemetry.spool`) and so is all that
follows, until a try after a pause gets through; then what was kept is sent, oldest first, beside what is new. So a receiver
that is down, slow or overloaded costs memory and time nowhere: nothing queues up behind it, nothing waits for it.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_kit.guard import guard
from otel_kit.telemetry.context import silenced
from otel_kit.telemetry.encoding import split
from otel_kit.telemetry.ledger import Ledger
from otel_kit.telemetry.outage import Outage
from otel_kit.telemetry.payload import Answer, Cause, Payload, Signal, Verdict
from otel_kit.telemetry.spool import Claim, Store
from otel_kit.telemetry.transport import Transport

#: Bytes of requests that wait for the sender; what comes beyond them is kept at once.
_OUTBOX: Final = 8 * 1024 * 1024
#: Seconds between two looks at what other processes of the service have left.
_POLL: Final = 1.0
#: Bytes a second of what was kept: fast enough for a full spool in half a minute, slow enough to leave the new its way.
_REPLAY_RATE: Final = 2 * 1024 * 1024
#: Seconds from one kept data point of a series to the next; in between, the newest replaces the one before.
_METRIC_GAP: Final = 60.0
#: Seconds that a process which hands the rest over waits for the answer to what is on its way.
_LAST_ANSWER: Final = 2.0
#: Share of a budget, and most seconds, that the end of a process keeps back for writing down what could not be sent.
_RESERVE: Final = (0.2, 1.0)
#: Seconds after which it looks there even where nothing seems to have changed: a process that was at it may have died.
_LOOK_AGAIN: Final = 10.0
#: Single items refused one by one, with none taken, after which it is not the items that the receiver objects to.
_HOPELESS: Final = 8
#: Requests that the search for the items to blame may take, for one group.
_MOST_ATTEMPTS: Final = 100
#: Pauses after failures, seconds: doubled from the first to the last, and shortened by chance so that processes part.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0


class Gate:
    """Whether the receiver may be asked now.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._until = 0.0

    @property
    def down(self) -> bool:
        """Whether the last attempt failed."""
        return self._failures > 0

    def pause(self) -> float:
        """Seconds until the next attempt may be made; 0 when it may be made now."""
        return max(0.0, self._until - self._clock()) if self._failures else 0.0

    def failed(self, retry_after: float | None) -> None:
        """The receiver could not take it; it may have said for how long."""
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
        self._failures += 1
        self._until = self._clock() + max(pause, retry_after or 0.0)

    def succeeded(self) -> None:
        """The receiver answered."""
        self._failures = 0


@dataclass(slots=True, eq=False)
class _Group:
    """Requests that were made of one batch or of one collection.

    Whoever claims it first decides what becomes of the rest: the sender, or the process's end that will not wait for it.
    """

    left: list[Payload]
    _claim: threading.Lock = field(default_factory=threading.Lock)

    def claim(self) -> bool:
        return self._claim.acquire(blocking=False)


class _Mark:
    """A place in the outbox: everything before it is settled when it is reached."""

    def __init__(self, *, final: bool) -> None:
        self.final = final
        self._reached = threading.Lock()
        self._reached.acquire()

    def reach(self) -> None:
        self._reached.release()

    def wait(self, timeout: float) -> bool:
        return self._reached.acquire(timeout=max(0.0, timeout))


class Pipeline:
    """Sends, keeps and replays one signal.

    Args:
        signal: Whose requests these are.
        destination: Where they go, for messages.
        transport: Makes one attempt.
        store: Keeps what could not be sent.
        durable: Whether the store outlives this process.
        ledger: Where every item is accounted for.
        outage: Where failures are said.
        cumulative: Whether a later request says all that an earlier one said (cumulative metrics): then an outage needs
            one a minute.
        on_attempt: Called after each attempt with its seconds and the answer.
        replays: Whether this process sends what is kept, or leaves that to another one.
    """

    def __init__(
        self,
        signal: Signal,
        destination: str,
        transport: Transport,
        store: Store,
        *,
        durable: bool,
        ledger: Ledger,
        outage: Outage,
        cumulative: bool = False,
        on_attempt: Callable[[float, Answer], None] = lambda _seconds, _answer: None,
        replays: Callable[[], bool] = lambda: True,
    ) -> None:
        self._signal = signal
        self._destination = destination
        self._transport = transport
        self._store = store
        self._durable = durable
        self._ledger = ledger
        self._outage = outage
        self._cumulative = cumulative
        self._on_attempt = on_attempt
        self._replays = replays
        self._gate = Gate()
        self._renew()

    def _renew(self) -> None:
        self._outbox: queue.SimpleQueue[_Group | _Mark] = queue.SimpleQueue()
        self._outbox_bytes = 0
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._in_flight: _Group | None = None
        self._latest: _Group | None = None
        self._last_kept = -_METRIC_GAP
        self._kept = 0
        self._claim: Claim | None = None
        self._replay_at = 0.0
        self._look_at = 0.0
        self._deadline: float | None = None
        self._handing_over = False
        self._ended = False
        self._closed = threading.Event()

    def reset_after_fork(self) -> None:
        """The parent sends what is the parent's. What it knows of the receiver holds for the child too."""
        self._renew()
        self._store.reset_after_fork()

    def renew(self) -> None:
        """Go on with new threads, locks and connections; nothing is lost."""
        waiting = self._outbox
        self._renew()
        self._transport.renew()
        with suppress(queue.Empty):
            while True:
                item = waiting.get_nowait()
                if isinstance(item, _Group):
                    self.put(item.left)
                else:
                    item.reach()
        self._start()

    def start(self) -> None:
        """Start sending what was kept before, by this process's forerunners too."""
        self._start()

    def put(self, payloads: list[Payload]) -> None:
        """Take over what one batch or collection was packed into. Never waits for the network, never raises."""
        if not payloads:
            return
        group = _Group(list(payloads))
        size = sum(len(payload.body) for payload in payloads)
        if self._ended or self._handing_over or not self._takes(size):
            self._keep(group)
            return
        with self._lock:
            self._outbox_bytes += size
        self._outbox.put(group)
        self._start()

    def _takes(self, size: int) -> bool:
        if self._gate.down:
            # One goes ahead when it is time to try again; the others do not pile up behind it.
            return not self._gate.pause() and self._outbox.empty() and self._in_flight is None
        return self._outbox_bytes + size <= _OUTBOX or self._outbox.empty()

    def flush(self, timeout: float) -> bool:
        """Wait until everything put so far is settled.

        Args:
            timeout: Seconds.

        Returns:
            Whether all of it was delivered; what was not is kept.
        """
        kept = self._kept
        if self._ended:
            return True  # what came since is kept
        mark = self._mark(final=False)
        return mark.wait(timeout) and self._kept == kept and not self._gate.down

    def hand_over(self) -> None:
        """From now on keep and send nothing: a process that outlives this one does the sending."""
        self._handing_over = self._durable

    def close(self, timeout: float) -> bool:
        """Send what is left, and write down what cannot be sent before ``timeout`` seconds are over.

        Returns:
            Whether everything was delivered, or left where another process of this service takes it.
        """
        if self._ended:
            return True
        now = time.monotonic()
        kept = self._kept
        # Set before anything waits: an attempt that starts now must not outlast it.
        self._deadline = now + timeout - min(timeout * _RESERVE[0], _RESERVE[1])
        if not self._handing_over:
            delivered = self._mark(final=True).wait(self._deadline - now) and self._kept == kept and not self._gate.down
        else:
            delivered = True
            if self._in_flight is not None:
                # A receiver that is well has it in a moment, and what is kept beside that would arrive twice.
                self._mark(final=False).wait(min(_LAST_ANSWER, self._deadline - now))
        self._ended = True
        self._rescue()
        self._transport.close()
        self._outbox.put(_Mark(final=False))  # wakes the sender, which sees that this is the end
        if self._thread is not None:
            self._thread.join(max(0.0, now + timeout - time.monotonic()))
        if not self._durable:
            self._give_up()
        self._ledger.speak()
        self._closed.set()
        return delivered

    def wait_closed(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until `close` has run; whether it has."""
        return self._closed.wait(max(0.0, timeout))

    def _mark(self, *, final: bool) -> _Mark:
        mark = _Mark(final=final)
        self._outbox.put(mark)
        self._start()
        return mark

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            self._thread = threading.Thread(
                target=self._run, args=(self._outbox,), name=f"otel-kit-send-{self._signal}", daemon=True
            )
        # None starts while the interpreter ends (since Python 3.12); `close` keeps what is left.
        with suppress(RuntimeError):
            self._thread.start()

    def _run(self, outbox: queue.SimpleQueue[_Group | _Mark]) -> None:
        # What happens here is not the application's: no span of it, no record of it.
        with silenced(), suppress_instrumentation():
            while not self._ended and outbox is self._outbox:
                with guard(f"sending {self._signal}"):
                    self._turn(outbox)

    def _turn(self, outbox: queue.SimpleQueue[_Group | _Mark]) -> None:
        wait = self._gate.pause() or max(0.0, self._replay_at - time.monotonic())
        try:
            item = outbox.get(timeout=min(_POLL, wait))
        except queue.Empty:
            item = None
        if isinstance(item, _Mark):
            try:
                if item.final:
                    self._finish()
            finally:
                item.reach()
            return
        if item is not None:
            with self._lock:
                self._outbox_bytes -= sum(len(payload.body) for payload in item.left)
            self._settle(item)
        if not self._gate.pause() and not self._handing_over:
            if item is None:
                self._send_latest()
            self._replay()
        self._ledger.speak()

    def _finish(self) -> None:
        """The process ends: what children have handed over, or what only memory holds, gets its last chance."""
        self._send_latest()
        while not self._gate.down or not self._durable:
            self._replay_at = 0.0
            if time.monotonic() >= (self._deadline or 0.0) or not self._replay():
                return

    def _settle(self, group: _Group) -> None:
        self._in_flight = group
        try:
            last_chance = self._deadline is not None and not self._durable
            if not self._handing_over and (last_chance or not self._gate.pause()):
                self._deliver(group)
        finally:
            self._in_flight = None
        if not group.claim():
            return  # the end of the process has kept it already
        if group.left:
            self._keep(group, claimed=True)
        else:
            self._latest = None  # of cumulative metrics, this one said all that it would have said

    def _send_latest(self) -> None:
        group, self._latest = self._latest, None
        if group is not None:
            self._settle(group)

    def _deliver(self, group: _Group) -> None:
        """Send until nothing is left or the receiver wants no more; what it objects to is found by halving."""
        taken, refused_alone, attempts = False, 0, 0
        while group.left:
            payload, attempts = group.left[0], attempts + 1
            answer = self._attempt(payload)
            if answer.perhaps_taken:
                self._ledger.resent(self._signal, payload.items)
            if answer.verdict is Verdict.LATER:
                return
            halves = None
            if answer.verdict is Verdict.DELIVERED:
                taken = True
                rejected = min(answer.rejected, payload.items)
                self._ledger.delivered(self._signal, payload.items - rejected)
                self._ledger.dropped(self._signal, Cause.REFUSED, rejected, answer.reason)
            elif (
                answer.verdict is Verdict.UNWELCOME
                or (not taken and refused_alone >= _HOPELESS)
                or attempts >= _MOST_ATTEMPTS
            ):
                said = f"{self._destination} says {answer.reason}"
                self._ledger.dropped(self._signal, Cause.REFUSED, payload.items, said)
            else:
                halves = split(payload)
                if halves is None:
                    refused_alone += 1
                    cause = Cause.TOO_LARGE if answer.verdict is Verdict.TOO_LARGE else Cause.REFUSED
                    self._ledger.dropped(self._signal, cause, payload.items, answer.reason)
            group.left[:1] = halves or []

    def _attempt(self, payload: Payload) -> Answer:
        deadline, began = self._deadline, time.monotonic()
        timeout = None if deadline is None else max(0.05, deadline - began)
        answer = self._transport.send(payload.body, timeout)
        self._on_attempt(time.monotonic() - began, answer)
        later = answer.verdict is Verdict.LATER
        if later:
            self._gate.failed(answer.retry_after)
        else:
            self._gate.succeeded()
        if answer.verdict is not Verdict.UNWELCOME:
            self._outage.report(self._signal, delivered=not later, reason=answer.reason)
        return answer

    def _keep(self, group: _Group, *, claimed: bool = False) -> None:
        if not claimed and not group.claim():
            return
        self._kept += 1
        if self._cumulative and not self._ended and not self._handing_over and self._deadline is None:
            now = time.monotonic()
            if now - self._last_kept < _METRIC_GAP:
                self._latest = _Group(group.left)  # until the minute is over, or the process
                return
            self._last_kept = now
        self._latest = None
        for payload in group.left:
            self._store_or_count(payload)

    def _store_or_count(self, payload: Payload) -> None:
        if self._ended and not self._durable:
            self._ledger.dropped(self._signal, Cause.EXIT, payload.items)
        elif not self._store.put(payload):
            self._ledger.dropped(self._signal, Cause.SPOOL_FULL, payload.items)
        self._look_at = 0.0

    def _rescue(self) -> None:
        """Keep what the sender has not settled; should its attempt get through after all, that is counted as doubled."""
        latest = self._latest
        in_flight = self._in_flight
        if in_flight is not None and in_flight.claim():
            self._ledger.resent(self._signal, sum(payload.items for payload in in_flight.left[:1]))
            self._keep(_Group(list(in_flight.left)))
        while True:
            try:
                item = self._outbox.get_nowait()
            except queue.Empty:
                break
            if isinstance(item, _Mark):
                item.reach()
            else:
                self._keep(item)
        if latest is not None and latest is self._latest:
            self._keep(latest)

    def _give_up(self) -> None:
        """What only memory holds ends with the process, and is counted."""
        claim = self._claim or self._store.claim()
        if claim is not None:
            while (payload := claim.next()) is not None:
                self._ledger.dropped(self._signal, Cause.EXIT, payload.items)
                claim.done()
            claim.close()

    def _replay(self) -> bool:
        """Send the oldest of what was kept, when it is its turn; whether there may be more."""
        now = time.monotonic()
        if now < self._replay_at:
            return True
        if not self._replays():
            self._replay_at = now + _POLL
            return False
        if self._claim is None:
            if self._store.changed() or now >= self._look_at:
                self._look_at = now + _LOOK_AGAIN
                self._claim = self._store.claim()
            if self._claim is None:
                self._replay_at = now + _POLL
                return False
        payload = self._claim.next()
        if payload is None:
            self._release_claim(look_again=_LOOK_AGAIN)
            return False
        group = _Group([payload])
        self._deliver(group)
        if group.left == [payload]:
            self._release_claim(look_again=_POLL)  # it stays where it is
            return False
        for rest in group.left:
            self._store_or_count(rest)
        self._claim.done()
        self._ledger.replayed(self._signal, payload.items - sum(rest.items for rest in group.left))
        self._replay_at = time.monotonic() + len(payload.body) / _REPLAY_RATE
        return True

    def _release_claim(self, *, look_again: float) -> None:
        if self._claim is not None:
            self._claim.close()
            self._claim = None
        now = time.monotonic()
        self._look_at, self._replay_at = now + look_again, now + _POLL
