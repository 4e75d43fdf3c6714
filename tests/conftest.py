"""What every test may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_kit.testing import OtlpSink


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    """An OTLP receiver of the test's own."""
    with OtlpSink() as receiver:
        yield receiver
