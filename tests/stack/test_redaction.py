"""The collector takes out secrets that a process has let through."""

from __future__ import annotations

import json
import uuid

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from otel_kit.stack.query import poll
from tests.stack import otlp
from tests.stack.conftest import Stack

BEARER = "Bearer s3cr3t-0123456789abcdef"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"
BY_KEY = {
    "password": "hunter2-a",
    "db.password": "hunter2-b",
    "http.request.header.authorization": "hunter2-c",
    "http.request.header.set-cookie": "hunter2-d",
    "X-Api-Key": "hunter2-e",
    "client_secret": "hunter2-f",
    "card_number": "hunter2-g",
}
BY_VALUE = {
    "note.1": BEARER,
    "note.2": f"token is {JWT}",
    "note.3": "AKIAIOSFODNN7EXAMPLE",
    "note.4": "4111111111111111",
    "note.5": "paid with 4111 1111 1111 1111",
    "url.full": "https://user:hunter2-h@example.org/?access_token=hunter2-i&page=2",
    "note.6": "login failed: password=hunter2-j",
    "note.8": '{"user": "ann", "password": "hunter2-o", "age": 5}',
    "note.7": "-----BEGIN RSA PRIVATE KEY-----\nMIIhunter2\n-----END RSA PRIVATE KEY-----",
}
HARMLESS = {"gen_ai.usage.output_tokens": 5, "job.id": "4111-22", "tokenizer": "bpe", "url.path": "/a/b", "page": "2"}
SECRETS = ["hunter2", "s3cr3t", JWT, "AKIAIOSFODNN7EXAMPLE", "4111111111111111", "4111 1111"]


@pytest.fixture
def service() -> str:
    return f"redaction-{uuid.uuid4().hex[:8]}"


def assert_clean(found: object) -> None:
    text = json.dumps(found)
    assert [secret for secret in SECRETS if secret in text] == []


def test_spans_lose_secrets_in_attributes_name_and_status_and_keep_the_rest(stack: Stack, service: str) -> None:
    failed = Status(code=Status.STATUS_CODE_ERROR, message=f"refused {BEARER}")
    span = otlp.span("GET https://user:hunter2-k@example.org", attrs={**BY_KEY, **BY_VALUE, **HARMLESS}, status=failed)
    event = span.events.add(name="exception", time_unix_nano=span.end_time_unix_nano)
    event.attributes.extend(otlp.attributes({"exception.message": "password: hunter2-l"}))
    stack.sender.send(otlp.traces(service, [span], {"api_key": "hunter2-m"}))
    (found,) = poll(lambda: stack.query.tempo_trace(span.trace_id.hex()), 20)
    assert_clean(found)
    kept = {entry["key"]: next(iter(entry["value"].values())) for entry in found["attributes"]}
    assert {key: kept[key] for key in HARMLESS} == {key: str(value) for key, value in HARMLESS.items()}
    assert kept.keys() == {*BY_KEY, *BY_VALUE, *HARMLESS}
    assert found["status"]["message"].startswith("refused ")


def test_log_records_lose_secrets_in_body_and_attributes(stack: Stack, service: str) -> None:
    body = f"user said {BEARER} and password=hunter2-n then left"
    stack.sender.send(otlp.logs(service, [otlp.record(body, attrs={**BY_KEY, **BY_VALUE})]))
    (found,) = poll(lambda: stack.query.loki_query(f'{{service_name="{service}"}}'), 20)
    assert_clean(found)
    assert found["line"].startswith("user said ")
    assert found["line"].endswith(" then left")


def test_metric_points_lose_secrets_in_attributes(stack: Stack, service: str) -> None:
    stack.sender.send(otlp.metrics(service, [otlp.gauge("redaction.gauge", 1, attrs={**BY_KEY, **BY_VALUE})]))
    (found,) = poll(lambda: stack.query.prom_query(f'redaction_gauge{{service_name="{service}"}}'), 20)
    assert_clean(found)


def test_what_is_masked_already_stays_as_it_is(stack: Stack, service: str) -> None:
    stack.sender.send(otlp.logs(service, [otlp.record("password=[REDACTED] token=****")]))
    (found,) = poll(lambda: stack.query.loki_query(f'{{service_name="{service}"}}'), 20)
    assert found["line"] == "password=[REDACTED] token=****"
