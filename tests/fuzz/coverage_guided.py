"""A fuzz that is guided by coverage, for an hour and not for every run: secrets, cuts, headers, and halves of requests.

    pip install atheris            # Linux, x86-64
    python tests/fuzz/coverage_guided.py -max_total_time=3600

What it prints as a crash is an input that raised; add it to tests/unit/test_fuzz.py.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["otel_kit"]):
    from opentelemetry.sdk.trace import TracerProvider

    from otel_kit.jobs import propagation
    from otel_kit.jobs.model import Job
    from otel_kit.telemetry import attributes
    from otel_kit.telemetry.encoding import encode, split
    from otel_kit.telemetry.limits import cut
    from otel_kit.telemetry.plain import plain
    from otel_kit.telemetry.redaction import Redactor

attributes.install()
redactor = Redactor()
tracer = TracerProvider(shutdown_on_exit=False).get_tracer("fuzz")
HEADERS = ("baggage", "traceparent", "tracestate", "otel-kit-previous-attempt")


def one_input(data: bytes) -> None:
    """Hand one input to everything that takes what others send."""
    given = atheris.FuzzedDataProvider(data)
    key, text = given.ConsumeUnicode(40), given.ConsumeUnicode(4096)
    once = redactor.text(text)
    assert redactor.text(once) == once
    cut(text, given.ConsumeIntInRange(64, 4096), "both")
    plain({key: [text, given.ConsumeInt(20), given.ConsumeBytes(64)]})
    propagation.start_context(
        Job("name", "id", "queue", "redis", carrier={name: given.ConsumeUnicode(600) for name in HEADERS}), "auto"
    )
    spans = []
    for _ in range(given.ConsumeIntInRange(1, 5)):
        span = tracer.start_span(given.ConsumeUnicode(20), attributes={key: text})
        span.set_attribute(given.ConsumeUnicode(20), given.ConsumeInt(given.ConsumeIntInRange(1, 40)))
        span.add_event(given.ConsumeUnicode(20), {key: text})
        span.end()
        spans.append(redactor.span(attributes.bounded(span._readable_span())))
    encoded = encode("traces", spans, limit=given.ConsumeIntInRange(200, 4096))
    assert sum(payload.items for payload in encoded.payloads) + sum(encoded.dropped.values()) == len(spans)
    for payload in encoded.payloads:
        halves = split(payload)
        assert halves is None or sum(half.items for half in halves) == payload.items


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
