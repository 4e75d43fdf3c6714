"""A gallery that takes photos: ``python gallery.py 10``."""

from __future__ import annotations

import sys

import otel_kit

otel_kit.configure("gallery")

from jobs import forget, resize, show  # noqa: E402 - telemetry first
from opentelemetry import trace  # noqa: E402

tracer = trace.get_tracer("gallery")


def upload(photo: str) -> None:
    """One upload: a pipeline, and something for later."""
    with tracer.start_as_current_span("upload", attributes={"photo": photo}):
        (resize.message(photo) | show.message()).run()
        forget.send_with_options(args=(photo,), delay=2000)


def main() -> None:
    """Upload as many as asked for; one in ten is no photo."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    for number in range(count):
        upload(f"photo-{number}.{'txt' if number % 10 == 9 else 'jpg'}")
    print(f"{count} uploads are queued")


if __name__ == "__main__":
    main()
