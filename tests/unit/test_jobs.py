"""The job model and how its trace goes on."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_kit import catalogue
from otel_kit.jobs import propagation
from otel_kit.jobs.delivery import delivered
from otel_kit.jobs.model import Job, Trigger


def _span(trace_id: int = 1, span_id: int = 2) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(1))


def test_a_wait_is_never_negative() -> None:
    job = Job("j", "1", ready_at=100.0)
    assert job.waited(101.5) == 1.5
    assert job.waited(40.0) == 0.0  # the worker's clock is behind
    assert Job("j", "1").waited(40.0) is None


@pytest.mark.parametrize(
    ("policy", "attempt", "delayed", "continues"),
    [
        ("auto", 1, False, True),
        ("auto", 2, False, False),
        ("auto", 1, True, False),
        ("parent", 2, True, True),
        ("link", 1, False, False),
    ],
)
def test_the_policy_decides_between_parent_and_link(policy: str, attempt: int, delayed: bool, continues: bool) -> None:
    carrier: dict[str, str] = {}
    with trace.use_span(NonRecordingSpan(_span())):
        propagation.inject(carrier, Trigger.API)
    job = Job("j", "1", system="redis", attempt=attempt, delayed=delayed, carrier=carrier)
    started, links = propagation.start_context(job, policy)
    assert trace.get_current_span(started).get_span_context().is_valid is continues
    assert [link.context.span_id for link in links] == ([] if continues else [2])


def test_a_retry_links_the_publish_and_the_attempt_before() -> None:
    carrier: dict[str, str] = {}
    with trace.use_span(NonRecordingSpan(_span(1, 2))):
        propagation.inject(carrier, Trigger.RETRY, previous=_span(1, 9))
    _started, links = propagation.start_context(Job("j", "1", system="redis", attempt=2, carrier=carrier), "auto")
    assert [link.context.span_id for link in links] == [2, 9]


def test_a_retry_does_not_keep_the_headers_of_the_attempt_before() -> None:
    carrier = {"traceparent": f"00-{7:032x}-{7:016x}-01", catalogue.PREVIOUS_ATTEMPT_HEADER: "stale"}
    propagation.inject(carrier, Trigger.MANUAL)
    assert "traceparent" not in carrier
    assert catalogue.PREVIOUS_ATTEMPT_HEADER not in carrier


def test_baggage_travels_and_survives_a_link() -> None:
    carrier: dict[str, str] = {}
    token = context.attach(baggage.set_baggage("request.id", "r-1"))
    try:
        propagation.inject(carrier, Trigger.API)
    finally:
        context.detach(token)
    started, _links = propagation.start_context(Job("j", "1", system="redis", carrier=carrier), "link")
    assert baggage.get_baggage("request.id", started) == "r-1"


def test_a_delayed_job_is_ready_at_its_eta_and_a_plain_one_when_enqueued() -> None:
    now = time.time()
    headers = {catalogue.ENQUEUED_AT_HEADER: repr(now)}
    plain = delivered("j", "1", "q", "redis", headers)
    assert plain.ready_at == now
    delayed = delivered("j", "1", "q", "redis", headers, start_at=4102444800.0)
    assert delayed.delayed
    assert delayed.ready_at == 4102444800.0


@given(
    st.dictionaries(
        st.sampled_from(["traceparent", "baggage", catalogue.ENQUEUED_AT_HEADER, catalogue.TRIGGER_HEADER]),
        st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.binary()),
    ),
    st.one_of(st.none(), st.floats(), st.integers()),
)
def test_hostile_headers_are_taken(headers: dict[str, object], start_at: float | None) -> None:
    job = delivered("j", "1", "q", "redis", headers, start_at=start_at, enqueued_at=start_at)
    propagation.start_context(job, "auto")
    waited = job.waited(time.time())
    assert waited is None or 0 <= waited < 31 * 86_400


@pytest.mark.parametrize("header", ["-inf", "inf", "nan", "0", "1e400", "yesterday"])
def test_a_time_that_cannot_be_does_not_spoil_the_histogram(header: str) -> None:
    assert delivered("j", "1", "q", "redis", {catalogue.ENQUEUED_AT_HEADER: header}).ready_at is None


@pytest.mark.parametrize("headers", [None, 7, "text", [("traceparent", "x")], {1: 2, None: 3}])
def test_headers_that_are_none_are_no_headers(headers: object) -> None:
    job = delivered("j", "1", "q", "redis", headers)
    assert job.carrier == {}
    assert job.ready_at is None


def test_the_latest_of_all_times_is_when_it_was_ready() -> None:
    now = time.time()
    headers = {catalogue.ENQUEUED_AT_HEADER: repr(now - 60)}
    assert delivered("j", "1", "q", "redis", headers, enqueued_at=now - 5).ready_at == now - 5
    assert delivered("j", "1", "q", "redis", headers, enqueued_at=now - 90, start_at=now - 30).ready_at == now - 30
