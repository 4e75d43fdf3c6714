"""Secrets do not leave, and what is none does."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from otel_kit.telemetry import secrets
from otel_kit.telemetry.limits import MAX_ITEMS, MAX_KEY, MAX_TEXT
from otel_kit.telemetry.redaction import REDACTED, Redactor

redactor = Redactor()


@pytest.mark.parametrize(
    "key",
    [
        "password", "db.password", "userPassword", "USER_PASSWORD", "userpassword", "passwd", "pwd", "secret",
        "client_secret", "clientSecret", "token", "access_token", "accessToken", "accesstoken", "authorization",
        "http.request.header.authorization", "Cookie", "set-cookie", "http.response.header.set_cookie", "api_key",
        "apiKey", "apikey", "x-api-key", "private_key", "aws.secret.access.key", "card_number", "credit_card", "ssn",
        "cvv", "credentials", "X-Amz-Signature", "http.request.header.x_api_key", "session_token", "db_pass", "smtp_pass",
        "passcode", "jwt", "session_id", "sessionId", "sessionid", "signing_key", "encryption_key", "cardnumber", "creditcard",
        "credit_card_number", "secret_key", "SECRET_KEY", "password2", "X-Hub-Signature-256", "x-auth-token",
        "next_page_token", "dbPass", "basic_auth", "Proxy-Authorization", "AccountKey",
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
        "db.query.text", "monkey", "discard", "card", "passenger", "design", "authority", "gen_ai.token.type",
        "llm.token_count.prompt", "token_count", "auth.method", "auth.type", "auth.failures", "password_reset",
        "cookie_consent", "function.signature", "token.expires_in", "messaging.message.id", "job.id", "trace_id", "session.id",
        "k8s.secret.name", "routing_key", "sort_key", "bypass", "time_to_first_token", "password.length", "client.session.id",
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
        ("User(name='bob', password='hunter2')", "User(name='bob', password='[redacted]')"),
        ('user=bob password="hunter2 and more" x=1', 'user=bob password="[redacted]" x=1'),
        ("password: hunter2", "password: [redacted]"),
        ("password = hunter2", "password = [redacted]"),
        ("user:password=hunter2", "user:password=[redacted]"),
        ("X-Api-Key: abc/def==", "X-Api-Key: [redacted]"),
        ("Authorization: Token abc\nHost: h", "Authorization: Token [redacted]\nHost: h"),
        ("Authorization: opaque abc def", "Authorization: [redacted]"),
        ("Cookie: sessionid=abc; theme=dark\r\nHost: h", "Cookie: [redacted]\r\nHost: h"),
        ("Set-Cookie: a=b; Path=/; Secure", "Set-Cookie: [redacted]"),
        ("curl -H 'Cookie: a=b; c=d' https://h/", "curl -H 'Cookie: [redacted]' https://h/"),
        ('{"password": 12345, "n": 1}', '{"password": [redacted], "n": 1}'),
        ('{"password": "it\'s me", "n": 1}', '{"password": "[redacted]", "n": 1}'),
        ('{"password": "a \\"quoted\\" word", "n": 1}', '{"password": "[redacted]", "n": 1}'),
        ('{"password": "ends in \\\\", "n": 1}', '{"password": "[redacted]", "n": 1}'),
        (r'"{\"password\": \"x\", \"n\": 1}"', r'"{\"password\": \"[redacted]\", \"n\": 1}"'),
        (r"{\"password\": \"a \\\"b\\\" c\", \"n\": 1}", r"{\"password\": \"[redacted]\", \"n\": 1}"),
        ('{"secrets": ["a", "b"], "n": 1}', '{"secrets": [redacted], "n": 1}'),
        ('{"password": "cut off', '{"password": "[redacted]'),
        ("{b'cookie': b'a=b', 'n': 1}", "{b'cookie': b'[redacted]', 'n': 1}"),
        ("SECRET_KEY=abc", "SECRET_KEY=[redacted]"),
        ("AccountName=a;AccountKey=abc==;X=1", "AccountName=a;AccountKey=[redacted];X=1"),
        ("--db-password=hunter2 --x", "--db-password=[redacted] --x"),
        ("github_pat_11ABCDEFG0abcdefghijkl_0123456789", "[redacted]"),
        ("key sk-proj-abcdefghijklmnop_qrs-tuv.", "key [redacted]."),
        ("sk-abcdefghij0123456789abcd", "[redacted]"),
        ("sk-abcdefghijklmnopqrstuvwxyzABCDEFGH", "[redacted]"),
        ("AIzaSyA1234567890abcdefghijklmnopqrstuv", "[redacted]"),
        ("glpat-abcdefghij0123456789", "[redacted]"),
        ("postgres://u:p/w@db/shop", "postgres://[redacted]@db/shop"),
        ("postgres://u:p@ss@db/shop", "postgres://[redacted]@db/shop"),
        ("postgres://u:p/w@ss@db/shop", "postgres://[redacted]@db/shop"),
        (f"postgres://u:{'p' * 1000}@db/shop", "postgres://[redacted]@db/shop"),
        ("jwt-eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "jwt-[redacted]"),
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
        "token_count=5",
        "auth.method=basic, auth.failures: 3",
        "the token and the secret stay plain without a separator",
        "https://host:8080/path@here",
        "http://[::1]:8080/path@here",
        "GET http://token-auth:50051/x from registry/auth:latest",
        "auth: login of bob failed",
        "use std::token::Kind",
        '{"password": null, "token": ""}',
        "password= ",
        "sk-learn-has-no-number-in-its-name",
        "task-0123456789abcdefghij",
        '{"url": "https://host", "mail": "bob@host"}',
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


PIECES = [
    "a=", "://", "password", "Bearer ", "4 ", "'token", '"', "eyJ.", "-----BEGIN PRIVATE KEY-----", "-", "a.", "_", "=", ":",
    "://a:", "://a@", "://a:b/", "@", "-eyJabcde", "eyJabcde.", "password=", "password='", 'password="', "password: \\",
    "\\", '\\"', "password=[", "Cookie: ", "Authorization: Token ", "sk-", "xoxb-", "ghp_", "characters] ...PRIVATE KEY", " ",
    "4111-", "password :", "A", "aB", "\n",
]  # fmt: skip


@pytest.mark.parametrize(("start", "end"), [("", ""), ("", "="), ("password='", "")])
@pytest.mark.parametrize("piece", PIECES)
def test_a_hostile_text_takes_time_in_proportion_to_its_length(piece: str, start: str, end: str) -> None:
    # The patterns themselves, without the cut that comes before them; the first words make sure that all of them run.
    text = "key=1 :// Bearer eyJ sk- PRIVATE KEY " + start + piece * (200_000 // len(piece)) + end
    began = time.process_time()
    redactor._finder.hide(text)
    # Linear patterns need some 100 ms for this; a quadratic one would need minutes.
    assert time.process_time() - began < 1


def test_a_hostile_key_is_judged_quickly_and_not_kept() -> None:
    mine = Redactor()
    began = time.process_time()
    assert mine.value("-" * 1_000_000 + "password", "x") == REDACTED
    assert mine.value("Aa" * 500_000, "x") == "x"
    assert time.process_time() - began < 1
    assert mine._finder._judged.cache_info().currsize == 0


def test_every_secret_name_is_looked_for_in_texts() -> None:
    for ending in secrets._SECRET:
        name = ending.strip("_")
        assert redactor.value(name, "x") == REDACTED, name
        assert redactor.text(f"{name}=hunter2") == f"{name}=[redacted]", name


def test_a_named_key_is_looked_for_in_texts_too() -> None:
    assert Redactor(["iban"]).text("iban=DE00 name=bob") == "iban=[redacted] name=bob"


@given(
    st.lists(st.sampled_from([*PIECES, "x", "1", "hunter2", "[redacted]", "]", "}", ",", "(", "/", "'"]), max_size=12)
)
def test_a_second_pass_over_odd_texts_changes_nothing(pieces: list[str]) -> None:
    once = redactor.text("".join(pieces))
    assert redactor.text(once) == once


def test_a_huge_text_is_cut_before_it_is_searched() -> None:
    text = "line of 'a log' with user=bob: and https://host/x?page=2\n" * 90_000
    began = time.process_time()
    clean = redactor.text(text)
    assert time.process_time() - began < 0.2
    assert len(clean) <= MAX_TEXT
    assert "... [cut " in clean


@pytest.mark.parametrize("before", range(10_880, 10_960, 3))
def test_a_cut_leaves_no_piece_of_a_secret(before: int) -> None:
    for secret in ("postgres://bob:hunter2hunter2@db/", '{"password":"hunter2hunter2","n":1}', "token=hunter2hunter2"):
        text = "x y " * (before // 4) + "z" * (before % 4) + f" {secret} " + "x y " * 20_000
        assert "hunter" not in redactor.text(text)
        assert "hunter" not in redactor.text(text[::-1].replace(secret[::-1], secret))


def test_the_end_of_a_private_key_is_hidden_when_its_beginning_was_cut_away() -> None:
    key = "-----BEGIN PRIVATE KEY-----\n" + "MIIhunter2\n" * 500 + "-----END PRIVATE KEY-----\n"
    clean = redactor.text("x y\n" * 10_000 + key + "x y\n" * 4_500)
    assert "hunter2" not in clean
    assert clean.endswith("x y\n")


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__
    __eq__ = __hash__ = __str__  # type: ignore[assignment]


class Endless(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")


class Account:
    def __str__(self) -> str:
        return "Account(password='hunter2')"


def test_values_that_raise_are_named_and_do_no_harm() -> None:
    assert redactor.value("payload", Unreadable()) == "[unreadable Unreadable]"
    assert redactor.value("payload", [1, Unreadable()]) == (1, "[unreadable Unreadable]")
    assert redactor.value("payload", Endless(a=1)) == "[unreadable Endless]"
    assert redactor.value("password", Unreadable()) == REDACTED


def test_any_other_object_leaves_as_its_redacted_text() -> None:
    assert redactor.value("payload", {"who": Account()}) == {"who": "Account(password='[redacted]')"}


def test_bytes_are_searched_and_else_left_alone() -> None:
    assert redactor.value("payload", b"\xff password=hunter2") == b"\xff password=[redacted]"
    harmless = b"\xff\x00"
    assert redactor.value("payload", harmless) is harmless


def test_long_containers_are_cut_visibly() -> None:
    cut_list = redactor.value("payload", list(range(MAX_ITEMS + 5)))
    assert cut_list == (*range(MAX_ITEMS - 1), "... [cut 6 items] ...")
    assert redactor.value("payload", cut_list) is cut_list
    cut_dict = redactor.value("payload", {str(n): n for n in range(MAX_ITEMS + 5)})
    assert len(cut_dict) == MAX_ITEMS
    assert cut_dict["..."] == "[cut 6 items]"
    assert redactor.value("payload", cut_dict) is cut_dict


def test_keys_inside_a_value_are_searched() -> None:
    assert redactor.value("payload", {"http://a:b@c/": 1}) == {"http://[redacted]@c/": 1}


def test_cyclic_and_shared_containers_end_quickly() -> None:
    cyclic: list[Any] = []
    cyclic += [cyclic] * 100
    shared: list[Any] = ["x" * 1000]
    for _ in range(30):
        shared = [shared] * 100
    texts = ["password=hunter2 " * 2000] * 100
    began = time.process_time()
    for value in (cyclic, shared, texts, [texts] * 100):
        assert "hunter2" not in str(redactor.value("payload", value))
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "value", [["a", "b"], ("a", 1), {"a": {"b": [1, None]}}, {"a", "b"}, b"x", 1.5, "text: a=b key=c", [True, False]]
)
def test_an_untouched_value_stays_the_very_same_object(value: Any) -> None:
    assert redactor.value("payload", value) is value
    attributes = {"payload": value}
    assert redactor.attributes(attributes) is attributes


def test_a_span_is_redacted_in_all_its_parts_and_else_stays_the_very_same_object() -> None:
    tracer = TracerProvider().get_tracer("test")
    plain: Any = tracer.start_span("plain", attributes={"a": "1", "b": ["x", "y"], "n": 7})
    plain.add_event("cache miss", {"key": "orders"})
    plain.end()
    assert redactor.span(plain) is plain
    dirty: Any = tracer.start_span(
        "GET /?token=hunter2", attributes={"b": ["password=hunter2"], "db.password": "hunter2"}
    )
    dirty.add_event("sent token=hunter2", {"exception.message": "password: hunter2"})
    dirty.end()
    assert "hunter2" not in redactor.span(dirty).to_json()


def test_keys_leave_encodable_cut_and_without_secrets_and_what_falls_together_is_counted() -> None:
    clean: Any = redactor.attributes(
        {"a\ud800": 1, "k" * 10_000: 2, "http://a:b@c/": 3, "x\ud800": 4, f"x{chr(0xDC01)}": 5, "n": 6}
    )
    assert clean["a?"] == 1
    assert clean["http://[redacted]@c/"] == 3
    [long] = [key for key in clean if key.startswith("kkk")]
    assert len(long) <= MAX_KEY
    assert "... [cut 9" in long
    assert (clean["x?"], clean["n"]) == (5, 6)
    assert clean.dropped == 1


def test_integers_that_need_more_than_64_bits_leave_as_their_text() -> None:
    assert redactor.value("n", 2**63) == str(2**63)
    assert redactor.value("n", [2**63 - 1, -(2**63), -(2**63) - 1]) == (2**63 - 1, -(2**63), str(-(2**63) - 1))


def test_a_description_of_an_instrument_is_redacted_too() -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("m")
    meter.create_counter("c", description="from postgres://u:hunter2@db/ \ud800").add(1)
    data = reader.get_metrics_data()
    assert data is not None
    metric = redactor.metrics(data).resource_metrics[0].scope_metrics[0].metrics[0]
    assert metric.description == "from postgres://[redacted]@db/ ?"
