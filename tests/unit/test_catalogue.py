"""Names: unique, well-formed, and what Prometheus makes of them."""

from __future__ import annotations

import re

import pytest

from otel_kit.catalogue import (
    DURATION,
    DURATION_BUCKETS,
    EXECUTIONS,
    INSTRUMENTS,
    PROCESS_UP,
    UPSTREAM_INSTRUMENTS,
    WAIT_BUCKETS,
    Instrument,
    prometheus_label,
    prometheus_name,
)


def test_names_are_unique_and_well_formed() -> None:
    names = [instrument.name for instrument in (*INSTRUMENTS, *UPSTREAM_INSTRUMENTS)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", name) for name in names)


def test_every_instrument_is_described() -> None:
    for instrument in INSTRUMENTS:
        assert instrument.kind in {"counter", "updowncounter", "histogram", "gauge"}
        assert instrument.description.endswith(".")
        assert bool(instrument.buckets) == (instrument.kind == "histogram")


def test_nothing_unbounded_is_on_a_metric() -> None:
    unbounded = {"job.id", "messaging.message.id", "process.pid", "user.id", "job.error.fingerprint"}
    assert not any(unbounded & set(instrument.attributes) for instrument in INSTRUMENTS)


@pytest.mark.parametrize(
    ("instrument", "name"),
    [
        (DURATION, "job_duration_seconds"),
        (EXECUTIONS, "job_executions_total"),
        (PROCESS_UP, "otel_kit_process_up"),
        (Instrument("a.b", "gauge", "1", ""), "a_b_ratio"),
        (Instrument("a.b", "counter", "By", ""), "a_b_bytes_total"),
        (Instrument("a.busy_seconds", "counter", "s", ""), "a_busy_seconds_total"),
        (Instrument("a.b", "gauge", "{job}", ""), "a_b"),
    ],
)
def test_prometheus_names_follow_the_translation(instrument: Instrument, name: str) -> None:
    assert prometheus_name(instrument) == name


def test_labels_have_no_dots() -> None:
    assert prometheus_label("messaging.destination.name") == "messaging_destination_name"


def test_alert_thresholds_are_bucket_edges() -> None:
    # A quantile is interpolated inside a bucket: a threshold that is no edge could not be told from its neighbours.
    assert {300, 900, 3600} <= set(DURATION_BUCKETS)
    assert {180, 600} <= set(WAIT_BUCKETS)
    assert list(DURATION_BUCKETS) == sorted(DURATION_BUCKETS)
    assert list(WAIT_BUCKETS) == sorted(WAIT_BUCKETS)
