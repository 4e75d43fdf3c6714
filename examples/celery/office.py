"""Takes parcels: a chain of two jobs for each, and one that waits."""

from __future__ import annotations

import sys

import otel_kit

otel_kit.configure("office")

from jobs import deliver, weigh  # noqa: E402 - telemetry first
from opentelemetry import trace  # noqa: E402


def take(number: int) -> None:
    """Hand one parcel in."""
    with trace.get_tracer("office").start_as_current_span("hand in", kind=trace.SpanKind.SERVER):
        (weigh.s(number) | deliver.s()).delay()
        deliver.apply_async((number,), countdown=2)


if __name__ == "__main__":
    for parcel in range(int(sys.argv[1]) if len(sys.argv) > 1 else 10):
        take(parcel)
