"""Tempo's native build answers what a client may retry with a status that says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from otel_kit.stack import assets
from otel_kit.stack.processes import spawn
from otel_kit.stack.query import poll
from tests.stack import otlp
from tests.stack.conftest import free_ports


@pytest.fixture
def tempo_without_ingester(binaries: dict[str, Path], tmp_path: Path) -> Iterator[str]:
    """Tempo as it is for a moment at every start: it takes requests, and its ingester has not joined the ring."""
    text = (assets.find().backends / "tempo" / "tempo.yaml").read_text()
    assert text.count("join_after: 0s") == 1
    config = tmp_path / "tempo.yaml"
    config.write_text(text.replace("join_after: 0s", "join_after: 1h"))
    ports = free_ports()
    env = {
        "TEMPO_HTTP_PORT": str(ports.tempo),
        "TEMPO_GRPC_PORT": str(ports.tempo_grpc),
        "TEMPO_OTLP_GRPC_PORT": str(ports.tempo_otlp_grpc),
        "TEMPO_OTLP_HTTP_PORT": str(ports.tempo_otlp_http),
        "TEMPO_DATA": str(tmp_path),
    }
    command = [str(binaries["tempo"]), f"-config.file={config}", "-config.expand-env=true"]
    process = spawn(command, {**os.environ, **env}, tmp_path / "log")
    yield f"127.0.0.1:{ports.tempo_otlp_grpc}"
    process.kill()


def test_a_push_before_the_ring_is_ready_is_answered_unavailable(tempo_without_ingester: str) -> None:
    request = otlp.traces("edge", [otlp.span()])
    with grpc.insecure_channel(tempo_without_ingester) as channel:
        export = TraceServiceStub(channel).Export

        def answer() -> grpc.RpcError | None:
            # Until Tempo serves, the connection itself fails; then it is Tempo that answers, about its ring.
            with pytest.raises(grpc.RpcError) as caught:
                export(request, timeout=5, wait_for_ready=True)
            return caught.value if "ring" in str(caught.value.details()) else None

        error = poll(answer, 30)
        assert error is not None
        assert error.code() is grpc.StatusCode.UNAVAILABLE
