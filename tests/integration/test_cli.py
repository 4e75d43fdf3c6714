"""The command line: what it says, and how it ends."""

from __future__ import annotations

import subprocess
import time

from otel_kit.testing import OtlpSink
from tests.integration.conftest import BIN, Programs, free_port


def _run(programs: Programs, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "otel-kit"), *arguments],
        env=programs.environment(COLUMNS="120", **environment), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_doctor_sends_a_span_and_says_what_would_be_wired(programs: Programs, sink: OtlpSink) -> None:
    ran = _run(programs, "doctor", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="redis")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"✓ {sink.endpoint}/v1/traces took a span" in ran.stdout
    assert [(span.service, span.name) for span in sink.spans] == [("otel-kit-doctor", "doctor")]
    states = {line.split()[1]: line for line in ran.stdout.splitlines() if line.startswith("│")}
    assert "stands in" in states["celery"]
    assert "wired" in states["otel_kit_celery"]
    assert "switched off" in states["redis"]


def test_doctor_without_a_collector_says_why_and_what_to_do_in_time(programs: Programs) -> None:
    began = time.monotonic()
    ran = _run(programs, "doctor", "--timeout", "1", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    assert ran.returncode == 1
    assert "does not take telemetry: " in ran.stdout
    assert "refused" in ran.stdout
    assert "otel-kit stack up" in ran.stdout
    assert ran.stderr == ""
    assert time.monotonic() - began < 20


def test_run_names_a_command_that_is_not_there(programs: Programs) -> None:
    ran = _run(programs, "run", "--", "no-such-program")
    assert ran.returncode == 1
    assert "COMMAND='no-such-program' is not found on PATH" in ran.stderr


def test_run_hands_on_arguments_exit_code_and_service_name(programs: Programs, sink: OtlpSink) -> None:
    script = (
        "import sys; from opentelemetry import trace; trace.get_tracer('t').start_span(sys.argv[1]).end(); sys.exit(7)"
    )
    ran = _run(programs, "run", "--service-name", "plain", "--", str(BIN / "python"), "-c", script, "--option")
    assert ran.returncode == 7, ran.stderr
    assert [(span.service, span.name) for span in sink.spans] == [("plain", "--option")]


def test_help_lists_every_command(programs: Programs) -> None:
    ran = _run(programs, "--help")
    assert ran.returncode == 0
    for command in ("demo", "doctor", "run", "stack"):
        assert f"\n  {command} " in ran.stdout
