"""What travels: one OTLP request, and what the receiver made of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

Signal = Literal["traces", "metrics", "logs"]
SIGNALS: Final[tuple[Signal, ...]] = ("traces", "metrics", "logs")


class Cause(StrEnum):
    """Why an item was given up. The values are those of the attribute ``otel_kit.cause``."""

    #: The queue in memory was full: the application makes more than can be encoded.
    QUEUE_FULL = "queue_full"
    #: It cannot be written as OTLP.
    UNENCODABLE = "unencodable"
    #: One item alone is above what a receiver takes.
    TOO_LARGE = "too_large"
    #: The receiver said no for good.
    REFUSED = "refused"
    #: The spool was full: the oldest went.
    SPOOL_FULL = "spool_full"
    #: Kept for longer than the backends take late data.
    EXPIRED = "expired"
    #: A file of the spool could not be read.
    CORRUPT = "corrupt"
    #: The process ended before it could be sent, and there was no place to keep it.
    EXIT = "exit"


@dataclass(frozen=True, slots=True)
class Payload:
    """One OTLP export request.

    Attributes:
        body: The serialised ``Export...ServiceRequest``, not compressed.
        items: Spans, data points or log records in it.
        created: When it was made, unix seconds.
    """

    signal: Signal
    body: bytes
    items: int
    created: float


class Verdict(StrEnum):
    """What an attempt came to."""

    DELIVERED = "delivered"
    #: Not now: no connection, a timeout, 408, 429, 5xx, or gRPC's retryable codes.
    LATER = "later"
    #: This request, never: 400, 422, or gRPC INVALID_ARGUMENT and the like. One item in it may be to blame.
    REFUSED = "refused"
    #: Too big for the receiver: 413, or gRPC RESOURCE_EXHAUSTED over a message's size.
    TOO_LARGE = "too_large"
    #: None of this sender's requests: 401, 403, 404 and every other 4xx, or gRPC UNAUTHENTICATED, PERMISSION_DENIED and
    #: UNIMPLEMENTED.
    #: No item is to blame, so nothing is gained by trying them one by one.
    UNWELCOME = "unwelcome"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver made of a request.

    Attributes:
        reason: For people, one line, without secrets; empty when delivered whole.
        status: HTTP status or gRPC code name (``"503"``, ``"UNAVAILABLE"``), or the error's class (``"ConnectionError"``);
            for the attribute ``error.type``.
        retry_after: Seconds that the receiver asks us to wait, None where it says nothing.
        rejected: Items that it took the request without (OTLP's partial success).
        perhaps_taken: The request had left in full before the connection broke: sending it again may double it.
    """

    verdict: Verdict
    reason: str = ""
    status: str = ""
    retry_after: float | None = None
    rejected: int = 0
    perhaps_taken: bool = False
