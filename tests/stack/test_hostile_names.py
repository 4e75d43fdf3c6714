"""Ten thousand names of jobs and queues from one client: the series stay bounded, and the overflow is visible."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

from otel_kit.stack.query import poll
from tests.stack.conftest import Stack

HOSTILE = """
import time
import otel_kit
otel_kit.configure()
from otel_kit.jobs.model import Job, Outcome, Trigger
from otel_kit.jobs.recorder import get_recorder
recorder = get_recorder()
for number in range(10_000):
    job = Job(f"job{number}", str(number), f"queue{number}", "redis", ready_at=time.time())
    with recorder.publishing(job, Trigger.API):
        pass
    recorder.tally.received(job)
    error = ValueError("made up") if number % 2 else None
    recorder.start(job, counted=True).finish(Outcome.FAILURE if error else Outcome.SUCCESS, error)
"""
#: Names that are told apart, and `_OTHER`.
NAMES = 200 + 1
#: Combinations of a job and a queue, by the bound on them.
PAIRS = 2 * NAMES + 1


def test_series_stay_bounded_and_the_overflow_is_visible(stack: Stack) -> None:
    service = f"hostile-{uuid.uuid4().hex[:8]}"
    environment = {
        **os.environ,
        "OTEL_SERVICE_NAME": service,
        "OTEL_EXPORTER_OTLP_ENDPOINT": stack.endpoints.otlp_http,
        "OTEL_KIT_SHUTDOWN_TIMEOUT": "30",
    }
    ran = subprocess.run(
        [sys.executable, "-c", HOSTILE], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "more than 200 different values of job.name" in ran.stderr
    selector = f'service_name="{service}"'

    def total(metric: str) -> float:
        return stack.query.prom_value(f"sum({metric}{{{selector}}})") or 0

    # Nothing is missing: what has no series of its own is counted under _OTHER.
    assert poll(lambda: total("job_executions_total") == 10_000, 60)
    assert total("messaging_client_sent_messages_total") == 10_000
    assert poll(lambda: total("traces_spanmetrics_calls_total") == 20_000, 60)

    def series(metric: str) -> float:
        return stack.query.prom_value(f"count({metric}{{{selector}}})") or 0

    outcomes = 9
    assert series("job_executions_total") <= PAIRS * outcomes
    assert series("job_duration_seconds_count") <= PAIRS * 2
    assert series("job_active") <= PAIRS
    assert series("messaging_client_sent_messages_total") <= NAMES
    assert series("job_last_start_time_seconds") <= NAMES
    for kind in ("PRODUCER", "CONSUMER"):
        names = (
            f'count(count by (span_name) (traces_spanmetrics_calls_total{{{selector}, span_kind="SPAN_KIND_{kind}"}}))'
        )
        assert (stack.query.prom_value(names) or 0) <= NAMES
    assert (stack.query.prom_value(f'count({{__name__=~".+", {selector}}})') or 0) < 25_000
    overflow = f'otel_kit_label_overflow_total{{{selector}, otel_kit_label="job.name"}}'
    assert (stack.query.prom_value(overflow) or 0) >= 10_000 - NAMES
