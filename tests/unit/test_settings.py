"""Options: what is taken, and what is said when it is not."""

from __future__ import annotations

import logging

import pytest

from otel_kit.settings import OPTIONS, ConfigurationError, Settings, read


def test_defaults_stand_when_nothing_is_given() -> None:
    settings = read({}, {})
    assert settings == Settings()
    assert settings.protocol == "http/protobuf"
    assert settings.metric_interval == 10.0


def test_a_keyword_wins_over_its_variable() -> None:
    environ = {"OTEL_SERVICE_NAME": "from-variable", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    settings = read({"service_name": "from-keyword"}, environ)
    assert settings.service_name == "from-keyword"
    assert settings.protocol == "grpc"


def test_a_variable_in_milliseconds_becomes_seconds() -> None:
    assert read({}, {"OTEL_METRIC_EXPORT_INTERVAL": "2500"}).metric_interval == 2.5
    assert read({"metric_interval": 2.5}, {}).metric_interval == 2.5


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("protocol", "http/json", "http/protobuf or grpc"),
        ("endpoint", "tcp://collector:4317", "an http:// or https:// URL with a host, or host:port"),
        ("endpoint", "collector", "an http:// or https:// URL with a host, or host:port"),
        ("endpoint", "http://host:99999", "an http:// or https:// URL with a host"),
        ("metric_interval", 0, "seconds, more than 0"),
        ("metric_interval", True, "seconds, more than 0"),
        ("shutdown_timeout", float("nan"), "seconds, more than 0"),
        ("disabled", "maybe", "true or false"),
        ("job_trace", "both", "auto, parent, link"),
        ("service_name", "", "a name that is not empty"),
        ("headers", "a=b", "a mapping"),
        ("log_level", "loud", "debug, info, warning, error, critical"),
    ],
)
def test_a_wrong_keyword_is_an_error_that_names_option_value_and_accepted(
    option: str, value: object, accepted: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read({option: value}, {})
    assert option in str(raised.value)
    assert repr(value) in str(raised.value)
    assert accepted in str(raised.value)


def test_an_unknown_keyword_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown option 'endpont'; accepted are .*endpoint"):
        read({"endpont": "http://x"}, {})


@pytest.mark.parametrize(
    "name",
    # Of names and lists of names any text is one.
    [n for n, o in OPTIONS.items() if o.variable and not o.accepts.startswith(("a comma", "a name"))],
)
def test_a_wrong_variable_is_named_in_the_log_and_the_default_used(name: str, caplog: pytest.LogCaptureFixture) -> None:
    option = OPTIONS[name]
    wrong = "not a value"
    with caplog.at_level(logging.ERROR):
        settings = read({}, {option.variable: wrong})
    assert getattr(settings, name) == getattr(Settings(), name)
    assert option.variable in caplog.text
    assert wrong in caplog.text
    assert option.accepts in caplog.text


def test_an_empty_variable_counts_as_unset() -> None:
    assert read({}, {"OTEL_SERVICE_NAME": "  ", "OTEL_EXPORTER_OTLP_PROTOCOL": ""}) == Settings()


def test_lists_are_split_at_commas() -> None:
    settings = read(
        {}, {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "celery, redis,,", "OTEL_TRACES_EXPORTER": "otlp,console"}
    )
    assert settings.disabled_instrumentations == ("celery", "redis")
    assert settings.traces_exporter == ("otlp", "console")
