"""Secrets do not leave, and what is none does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_kit.telemetry.redaction import REDACTED, Redactor

redactor = Redactor()


@pytest.mark.parametrize(
    "key",
    [
        "password", "db.password", "userPassword", "USER_PASSWORD", "userpassword", "passwd", "pwd", "secret",
        "client_secret", "clientSecret", "token", "access_token", "accessToken", "accesstoken", "authorization",
        "http.request.header.authorization", "Cookie", "set-cookie", "http.response.header.set_cookie", "api_key",
        "apiKey", "apikey", "x-api-key", "private_key", "aws.secret.access.key", "card_number", "credit_card", "ssn",
        "cvv", "credentials", "X-Amz-Signature",
    ],
)  # fmt: skip
def test_a_value_under_a_secret_key_is_replaced_whole(key: str) -> None:
    assert redactor.value(key, "hunter2") == REDACTED
    assert redactor.value(key, 12345) == REDACTED
    assert redactor.value(key, ["a", "b"]) == REDACTED


@pytest.mark.parametrize(
    "key",
    [
        "gen_ai.usage.input_tokens", "tokens", "secretary", "job.name", "http.route", "author", "keyboard", "user.id",
        "db.query.text", "monkey", "discard", "card", "passenger", "design", "authority",
    ],
)  # fmt: skip
def test_a_key_that_only_looks_alike_is_left_alone(key: str) -> None:
    assert redactor.value(key, "plain") == "plain"
    assert redactor.value(key, 7) == 7


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgres://bob:s3cret@db:5432/shop", "postgres://[redacted]@db:5432/shop"),
        ("redis://:pw@host/0 and amqp://u:p@q//", "redis://[redacted]@host/0 and amqp://[redacted]@q//"),
        ("GET /cb?code=1&access_token=abc.def&x=1", "GET /cb?code=1&access_token=[redacted]&x=1"),
        ("https://h/p?api_key=abc", "https://h/p?api_key=[redacted]"),
        ("password=hunter2 user=bob", "password=[redacted] user=bob"),
        ('{"password": "hunter2", "user": "bob"}', '{"password": "[redacted]", "user": "bob"}'),
        ("{'api_key': 'abc', 'n': 1}", "{'api_key': '[redacted]', 'n': 1}"),
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer [redacted]"),
        ("basic dXNlcjpwYXNz", "basic [redacted]"),
        ("id eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-DEF_123 end", "id [redacted] end"),
        ("key AKIAIOSFODNN7EXAMPLE.", "key [redacted]."),
        ("ghp_0123456789abcdefghij0123456789abcdef", "[redacted]"),
        ("xoxb-123456789012-abcdefghij", "[redacted]"),
        ("sk_live_0123456789abcdef", "[redacted]"),
        ("card 4111 1111 1111 1111 declined", "card [redacted] declined"),
        ("card 5500-0000-0000-0004", "card [redacted]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nrest", "[redacted]\nrest"),
        ("-----BEGIN PRIVATE KEY-----\ncut off", "[redacted]"),
    ],
)
def test_a_secret_inside_a_text_is_replaced(text: str, clean: str) -> None:
    assert redactor.text(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "GET /orders/12345?page=2&sort=name",
        "https://shop.example/path@here",
        "time 1795321423820608900 ns",  # a time, not a card
        "order 4111111111111112",  # fails Luhn's check
        "trace 4bf92f3577b34da6a3ce929d0e0e4736",
        "tokens=12 of 4096",
        "the password must have eight letters",
        "SELECT * FROM users WHERE id = %(id)s",
        "basic research",
    ],
)
def test_a_plain_text_stays_the_very_same_object(text: str) -> None:
    assert redactor.text(text) is text or redactor.text(text) == text
    assert REDACTED not in redactor.text(text)


def test_nested_values_are_searched() -> None:
    value = {"user": {"name": "bob", "password": "x"}, "urls": ["http://a:b@c/"], "n": 1, "none": None}
    assert redactor.value("payload", value) == {
        "user": {"name": "bob", "password": REDACTED},
        "urls": ("http://[redacted]@c/",),
        "n": 1,
        "none": None,
    }


def test_a_recursive_value_ends() -> None:
    value: dict[str, object] = {}
    value["self"] = value
    assert REDACTED in str(redactor.value("payload", value))


def test_more_keys_can_be_named() -> None:
    more = Redactor(["iban"])
    assert more.value("customer.IBAN", "DE00") == REDACTED
    assert more.value("customer.name", "bob") == "bob"


def test_untouched_attributes_are_not_copied() -> None:
    attributes = {"a": "1", "b": 2}
    assert redactor.attributes(attributes) is attributes


@given(st.text(max_size=2000))
def test_any_text_is_taken_and_a_second_pass_changes_nothing(text: str) -> None:
    once = redactor.text(text)
    assert redactor.text(once) == once


@pytest.mark.parametrize(
    "piece", ["a=", "://", "password", "Bearer ", "4 ", "'token", '"', "eyJ.", "-----BEGIN PRIVATE KEY-----"]
)
def test_a_hostile_text_does_not_take_long(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    import time

    began = time.process_time()
    redactor.text(text)
    # Linear patterns need some 50 ms for this; a quadratic one would need minutes.
    assert time.process_time() - began < 5
