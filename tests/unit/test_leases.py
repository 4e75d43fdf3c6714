"""What a lease says, how settings are read, and what a store's members are."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan as Remote
from opentelemetry.trace import SpanContext, TraceFlags, set_span_in_context

from otel_kit.integrations.redis_leases import RedisLeases, leases_for, redis_url
from otel_kit.jobs.lease_store import LARGEST_PAYLOAD, Lease, from_text, key_of_job
from otel_kit.jobs.leases import LeaseSettings, Payload, keep, lease_settings
from otel_kit.jobs.model import Job, Trigger
from otel_kit.telemetry.ids import ChosenIds, chosen
from otel_kit.telemetry.redaction import Redactor

SPAN = SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_remote=True, trace_flags=TraceFlags(1))
HEADERS = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-4242424242424242-01",
    "otel-kit-previous-attempt": "00-0af7651916cd43dd8448eb211c80319c-4111111111111111-01",
    "otel-kit-trigger": "api",
}


def lease(**parts: object) -> Lease:
    job = Job(
        "render",
        "r1",
        "mail",
        "redis",
        2,
        Trigger.API,
        10.5,
        11.5,
        delayed=True,
        carrier=HEADERS,
        max_runtime=60.0,
        recoverable=True,
    )
    return Lease(
        **{
            "job": job,
            "started_at": 1.5,
            "owner": "o",
            "service": "a/b/c",
            "where": "process 7",
            "context": SPAN,
            "framework": "rq",
            "payload": "p",
            **parts,
        }
    )  # type: ignore[arg-type]


def test_a_lease_is_read_as_it_was_written() -> None:
    assert from_text(lease().to_text(Redactor())) == lease()
    bare = Lease(Job("render", "r1"), 1.0, "o")
    assert from_text(bare.to_text(Redactor())) == bare
    long = lease(job=Job("render", "\ud800" + "i" * 900))
    assert from_text(long.to_text(Redactor())).member == long.member


def test_ids_that_look_like_card_numbers_stay_and_secrets_go() -> None:
    headers = {**HEADERS, "baggage": "user.id=7,password=hunter2"}
    job = Job("render", "r1", carrier=headers)
    text = lease(job=job).to_text(Redactor())
    assert "4111111111111111" in text
    assert "4242424242424242" in text
    assert "hunter2" not in text


def test_a_record_is_bounded_whatever_the_job_is_like() -> None:
    job = Job(
        "n" * 10**6, "i" * 10**6, "q" * 10**6, "s" * 10**6, carrier={"traceparent": "0" * 10**6, "baggage": "b" * 10**6}
    )
    huge = lease(job=job, payload="é" * (LARGEST_PAYLOAD // 2 + 1))
    assert len(huge.to_text(Redactor())) < 5000
    assert from_text(huge.to_text(Redactor())).payload is None
    assert len(huge.member) < 500
    assert len(lease(payload="é" * (LARGEST_PAYLOAD // 2)).to_text(Redactor()).encode()) > LARGEST_PAYLOAD


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "[]",
        "{}",
        '{"name": "a"}',
        "1",
        b"\xff\xfe",
        json.dumps({"name": "a", "id": "b", "attempt": "x", "started_at": 1, "owner": "o"}),
    ],
)
def test_what_is_no_record_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="no record of a lease"):
        from_text(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    ),
    st.sampled_from(["name", "carrier", "span", "attempt", "started_at", "trigger"]),
)
def test_a_record_that_somebody_has_changed_is_read_or_refused(value: object, name: str) -> None:
    said = {**json.loads(lease().to_text(Redactor())), name: value}
    try:
        from_text(json.dumps(said))
    except ValueError:
        return


def test_each_run_has_a_member_of_its_own_that_begins_with_its_job() -> None:
    job = lease().job
    others = [
        lease(owner="other"),
        lease(started_at=1.6),
        lease(service="x"),
        lease(job=Job("render", "r1", attempt=3)),
        lease(job=Job("render", "r11")),
        lease(job=Job("render", "r1\x1f2")),
    ]
    members = {each.member for each in (lease(), *others)}
    assert len(members) == 1 + len(others)
    assert lease().member.startswith(key_of_job(job.id))
    assert not lease(job=Job("render", "r11")).member.startswith(key_of_job("r1"))
    assert not lease(job=Job("render", "r1\x1f2")).member.startswith(key_of_job("r1"))
    assert key_of_job("\ud800" + "i" * 1000) != key_of_job("\ud800" + "i" * 1001)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, LeaseSettings(True, None, 20.0)),
        ({"OTEL_KIT_LEASES": "on"}, LeaseSettings(True, None, 20.0)),
        ({"OTEL_KIT_LEASES": " OFF "}, LeaseSettings(False, None, 20.0)),
        (
            {"OTEL_KIT_LEASES": "rediss://host/2", "OTEL_KIT_LEASE_TTL": "5"},
            LeaseSettings(True, "rediss://host/2", 5.0),
        ),
    ],
)
def test_settings_are_read(environ: dict[str, str], expected: LeaseSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert lease_settings() == expected


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (
            {"OTEL_KIT_LEASES": "amqp://user:secret@host"},
            "OTEL_KIT_LEASES='amqp://host' is not accepted; accepted: on, off",
        ),
        ({"OTEL_KIT_LEASE_TTL": "0"}, "OTEL_KIT_LEASE_TTL='0' is not accepted; accepted: seconds, from 1 to 3600"),
        ({"OTEL_KIT_LEASE_TTL": "nan"}, "OTEL_KIT_LEASE_TTL='nan'"),
    ],
)
def test_a_setting_that_is_not_accepted_is_named_and_the_default_used(
    environ: dict[str, str], said: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.ERROR):
        assert lease_settings() == LeaseSettings(True, None, 20.0)
    assert said in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("broker", "expected"),
    [
        ("redis://host:1/2", "redis://host:1/2"),
        ("rediss://host", "rediss://host"),
        ("redis+socket:///run/redis.sock?virtual_host=3", "unix:///run/redis.sock?db=3"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("amqp://host", None),
        ("sentinel://a:1;sentinel://b:1", None),
        ("redis://a;redis://b", None),
    ],
)
def test_a_brokers_url_is_read_as_redis_understands_it(broker: str, expected: str | None) -> None:
    assert redis_url(broker) == expected


def test_a_worker_without_redis_keeps_leases_only_where_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_KIT_LEASES", raising=False)
    assert leases_for(None) is None
    assert leases_for("amqp://host") is None
    assert leases_for("redis://host") is not None
    monkeypatch.setenv("OTEL_KIT_LEASES", "off")
    assert leases_for("redis://host") is None
    monkeypatch.setenv("OTEL_KIT_LEASES", "redis://elsewhere")
    for broker in (None, "amqp://host", "redis://host"):
        found = leases_for(broker)
        assert found is not None
        assert found.name == "redis://elsewhere"
    with pytest.raises(ValueError, match="leases are kept in Redis: expected redis://"):
        RedisLeases("amqp://host", override=False)


def test_without_telemetry_nothing_is_kept_and_nothing_claimed() -> None:
    payload: Payload = lambda job: job.id  # noqa: E731
    keep(None, framework="rq", payload=payload)
    keep(RedisLeases("redis://127.0.0.1:1"))  # this process makes no metrics: what it claimed would vanish


def test_a_span_gets_the_ids_that_were_chosen_for_it_and_the_next_one_others() -> None:
    tracer = TracerProvider(id_generator=ChosenIds()).get_tracer("test")
    with chosen(SPAN):
        first, second = tracer.start_span("first"), tracer.start_span("second")
    after = tracer.start_span("after")
    assert (first.get_span_context().trace_id, first.get_span_context().span_id) == (SPAN.trace_id, SPAN.span_id)
    for other in (second, after):
        assert other.get_span_context().span_id != SPAN.span_id
        assert other.get_span_context().trace_id != SPAN.trace_id
    parent = SpanContext(5, 6, is_remote=True, trace_flags=TraceFlags(1))
    with chosen(SPAN):
        child = tracer.start_span("child", set_span_in_context(Remote(parent)))
    assert (child.get_span_context().trace_id, child.get_span_context().span_id) == (5, SPAN.span_id)
    with chosen(None):
        assert tracer.start_span("free").get_span_context().is_valid
