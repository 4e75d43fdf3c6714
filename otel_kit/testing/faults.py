"""Receivers that misbehave: what the in-process receiver does with a request, switchable while it runs.

    sink.script.set(Status(503, retry_after=2))           # every request, until something else is set
    sink.script.set(Hang(), signal="logs", times=1)       # the next request for logs only, then as before
    ...
    sink.script.set(Accept())
    [arrival.at for arrival in sink.script.arrivals]      # when each request came: proves Retry-After and back-off
    sink.script.counts["taken"]

Connections that are refused are `otel_kit.testing.OtlpSink.pause` and ``resume``: the same port, nobody listens.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Signal = Literal["traces", "metrics", "logs"]


@dataclass(frozen=True, slots=True)
class Accept:
    """Takes it and says so."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answers.

    Attributes:
        reading: Whether it reads the request before. Over gRPC it always does.
    """

    reading: bool = True


@dataclass(frozen=True, slots=True)
class Slow:
    """Takes it, and says so after ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """Says no.

    Attributes:
        status: HTTP status. Over gRPC it becomes the code that the collector's receiver would use.
        retry_after: Seconds, or an HTTP date; over gRPC seconds in a ``RetryInfo``.
        message: Goes into a ``google.rpc.Status``, unless ``body`` is given.
        body: A body as it is.
        kind: The body's ``Content-Type``.
        headers: More headers of the response.
        code: Name of the gRPC code where the usual one is not meant.
    """

    status: int
    retry_after: float | str | None = None
    message: str = "overloaded"
    body: bytes | None = None
    kind: str = "application/x-protobuf"
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str = ""


@dataclass(frozen=True, slots=True)
class RejectIf:
    """Takes a request unless it holds an item for which ``condition`` is true: then it is refused whole, with 400.

    Attributes:
        condition: Asked with each `Span`, `MetricPoint` or `LogRecord` of the request.
    """

    condition: Callable[[Any], bool]
    message: str = "an item is not acceptable"


@dataclass(frozen=True, slots=True)
class Partial:
    """Takes it and says that it left out ``rejected`` of its items (OTLP's partial success); it keeps them all."""

    rejected: int
    message: str = "left out"


@dataclass(frozen=True, slots=True)
class CutReading:
    """Resets the connection after ``after`` bytes of the body. Over gRPC as `CutTaken`, without taking it."""

    after: int = 1


@dataclass(frozen=True, slots=True)
class CutTaken:
    """Takes the whole request, then ends the connection without an answer: whoever sends it again doubles it.

    A gRPC handler cannot end its connection: there it answers UNAVAILABLE, in the words that a client has for a broken one.
    """


@dataclass(frozen=True, slots=True)
class Drip:
    """Takes it, and answers a byte at a time for as long as the other side has patience. Over gRPC it hangs.

    Attributes:
        interval: Seconds between two bytes.
        where: Whether the status line, the headers or the body never ends.
    """

    interval: float = 0.05
    where: Literal["status", "headers", "body"] = "body"


Behaviour = Accept | Hang | Slow | Status | RejectIf | Partial | CutReading | CutTaken | Drip


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request that began to arrive.

    Attributes:
        at: When, by ``time.monotonic()``.
        headers: Lower-case names; over gRPC the metadata.
        peer: The other side's address: the same as long as the connection is.
    """

    signal: Signal
    protocol: Literal["http", "grpc"]
    at: float
    headers: Mapping[str, str]
    peer: str
    behaviour: Behaviour


class Script:
    """What a receiver does next, and what it has done. Everything may be called from any thread.

    Attributes:
        counts: How often a request was ``taken``, ``refused`` (answered no), ``hung``, ``cut`` or ``dripped``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._standing: dict[Signal | None, Behaviour] = {None: Accept()}
        self._next: list[tuple[Signal | None, Behaviour]] = []
        self._arrivals: list[Arrival] = []
        self.counts: Counter[str] = Counter()

    def set(self, behaviour: Behaviour, signal: Signal | None = None, times: int | None = None) -> None:
        """From the next request on, do this.

        Args:
            behaviour: What to do.
            signal: Only for this signal; it goes before what is set for all.
            times: For so many requests, before what is set for good; setting that forgets what is left of these.
        """
        with self._lock:
            if times is not None:
                self._next.extend([(signal, behaviour)] * times)
                return
            self._next = [left for left in self._next if signal is not None and left[0] != signal]
            if signal is None:
                self._standing.clear()
            self._standing[signal] = behaviour

    @property
    def arrivals(self) -> list[Arrival]:
        """Every request so far, oldest first, a copy."""
        with self._lock:
            return list(self._arrivals)

    def count(self, outcome: str) -> None:
        """Note what was done with a request."""
        with self._lock:
            self.counts[outcome] += 1

    def arrived(
        self, signal: Signal, protocol: Literal["http", "grpc"], headers: Mapping[str, str], peer: str
    ) -> Behaviour:
        """Note a request, and tell what to do with it."""
        with self._lock:
            behaviour = self._choose(signal)
            self._arrivals.append(Arrival(signal, protocol, time.monotonic(), headers, peer, behaviour))
            return behaviour

    def _choose(self, signal: Signal) -> Behaviour:
        for index, (meant, behaviour) in enumerate(self._next):
            if meant in (None, signal):
                del self._next[index]
                return behaviour
        return self._standing.get(signal) or self._standing.get(None) or Accept()
