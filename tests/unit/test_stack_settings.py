"""The stack's settings: defaults, environment, and errors that name the setting, its value and what is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_kit.stack import assets
from otel_kit.stack.endpoints import Endpoints, State
from otel_kit.stack.errors import StackError
from otel_kit.stack.settings import Ports, StackSettings


def test_defaults_follow_the_xdg_folders() -> None:
    settings = StackSettings.from_env({"XDG_DATA_HOME": "/data", "XDG_CACHE_HOME": "/cache"})
    assert settings.data_dir == Path("/data/otel-kit/stack")
    assert settings.cache_dir == Path("/cache/otel-kit/stack")
    assert (settings.ports.otlp_http, settings.ports.prometheus) == (4318, 9090)
    assert (settings.traces_days, settings.metrics_days, settings.logs_days, settings.audit_days) == (7, 30, 30, 365)


def test_a_relative_xdg_folder_is_ignored() -> None:
    assert StackSettings.from_env({"XDG_CACHE_HOME": "here"}).cache_dir == Path.home() / ".cache/otel-kit/stack"


def test_every_setting_is_read_from_the_environment() -> None:
    settings = StackSettings.from_env(
        {
            "OTEL_KIT_STACK_DATA_DIR": "/d",
            "OTEL_KIT_STACK_CACHE_DIR": "/c",
            "OTEL_KIT_STACK_PORT_LOKI": "3101",
            "OTEL_KIT_STACK_TRACES_DAYS": "1",
            "OTEL_KIT_STACK_METRICS_DAYS": "2",
            "OTEL_KIT_STACK_LOGS_DAYS": "3",
            "OTEL_KIT_STACK_AUDIT_DAYS": "4",
            "OTEL_KIT_STACK_START_TIMEOUT": "5.5",
            "OTEL_KIT_STACK_STOP_TIMEOUT": "6",
            "OTEL_KIT_STACK_TAIL_SAMPLING": "true",
            "OTEL_KIT_STACK_ALERT_WEBHOOK": "https://hooks.example/x",
        }
    )
    assert settings == StackSettings(
        data_dir=Path("/d"),
        cache_dir=Path("/c"),
        ports=Ports(loki=3101),
        traces_days=1,
        metrics_days=2,
        logs_days=3,
        audit_days=4,
        start_timeout=5.5,
        stop_timeout=6.0,
        tail_sampling=True,
        alert_webhook="https://hooks.example/x",
    )


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        ("OTEL_KIT_STACK_PORT_TEMPO", "0", "1 to 65535"),
        ("OTEL_KIT_STACK_PORT_TEMPO", "65536", "1 to 65535"),
        ("OTEL_KIT_STACK_PORT_TEMPO", "http", "1 to 65535"),
        ("OTEL_KIT_STACK_PORT_TEMPO", "³²⁰⁰", "1 to 65535"),
        ("OTEL_KIT_STACK_LOGS_DAYS", "0", "whole days, 1 to 3650"),
        ("OTEL_KIT_STACK_LOGS_DAYS", "30d", "whole days, 1 to 3650"),
        ("OTEL_KIT_STACK_START_TIMEOUT", "-1", "seconds, above 0"),
        ("OTEL_KIT_STACK_START_TIMEOUT", "nan", "seconds, above 0"),
        ("OTEL_KIT_STACK_STOP_TIMEOUT", "soon", "seconds, above 0"),
        ("OTEL_KIT_STACK_TAIL_SAMPLING", "maybe", "true or false"),
        ("OTEL_KIT_STACK_ALERT_WEBHOOK", "example.org", "http:// or https://"),
    ],
)
def test_a_bad_value_is_named_with_its_setting_and_what_is_accepted(variable: str, value: str, accepted: str) -> None:
    with pytest.raises(StackError) as caught:
        StackSettings.from_env({variable: value})
    assert variable in str(caught.value)
    assert repr(value) in str(caught.value)
    assert accepted in str(caught.value)


def test_two_parts_on_one_port_are_refused_by_name() -> None:
    with pytest.raises(StackError, match="OTEL_KIT_STACK_PORT_PROMETHEUS and OTEL_KIT_STACK_PORT_TEMPO are both 9090"):
        StackSettings.from_env({"OTEL_KIT_STACK_PORT_TEMPO": "9090"})


def test_assets_of_a_wheel_come_before_those_of_a_checkout(tmp_path: Path) -> None:
    package = tmp_path / "otel_kit"
    for root in (tmp_path, package / "_assets"):
        (root / "collector").mkdir(parents=True)
        (root / "collector" / "builder.yaml").touch()
    assert assets.find(package).root == package / "_assets"


def test_missing_assets_are_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"collector/builder\.yaml"):
        assets.find(tmp_path / "otel_kit")


def test_endpoints_of_the_running_stack_are_those_that_up_has_written(tmp_path: Path) -> None:
    settings = StackSettings(data_dir=tmp_path, cache_dir=tmp_path, ports=Ports(loki=3101))
    with pytest.raises(StackError, match="otel-kit stack up"):
        Endpoints.of_running(settings)
    State("native", Endpoints.native(settings.ports)).save(settings)
    assert Endpoints.of_running(settings).loki == "http://127.0.0.1:3101"
    State.clear(settings)
    assert State.load(settings) is None


def test_a_spoilt_state_file_is_named(tmp_path: Path) -> None:
    settings = StackSettings(data_dir=tmp_path, cache_dir=tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stack.json").write_text('{"engine": "native", "endpoints": {"tempo": 1}}')
    with pytest.raises(StackError, match=r"run/stack\.json is not readable"):
        State.load(settings)
