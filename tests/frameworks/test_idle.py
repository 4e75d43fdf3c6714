"""Workers that have nothing to do: a minute of polling makes not one span."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_kit.testing import OtlpSink
from tests.frameworks.adapter import Framework
from tests.frameworks.conftest import Bench
from tests.frameworks.registry import frameworks

MINUTE = 60.0


@pytest.mark.timeout(300)
def test_idle_workers_send_no_span(broker_of: Callable[[Framework, int], str], tmp_path: Path) -> None:
    benches: list[Bench] = []
    with OtlpSink() as sink:
        try:
            for number, framework in enumerate(frameworks()):
                folder = tmp_path / framework.name
                folder.mkdir()
                made = Bench(framework, folder, broker_of(framework, 3 + number), sink)
                benches.append(made)
                made.start(OTEL_SERVICE_NAME=framework.name)
            began = time.time()
            time.sleep(MINUTE)  # the claim is about this minute: there is nothing to wait for
            assert sorted({(span.service, span.name) for span in sink.spans if span.start > began}) == []
            alive = {point.service for point in sink.points if point.name == "otel_kit.process.up"}
            assert alive == {framework.name for framework in frameworks()}
        finally:
            for made in benches:
                made.programs.end()
