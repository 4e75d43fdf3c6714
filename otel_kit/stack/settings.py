"""Every option of the stack once: name, environment variable, default, what is accepted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from otel_kit.stack.errors import StackError

PREFIX = "OTEL_KIT_STACK_"


@dataclass(frozen=True)
class Ports:
    """TCP ports on 127.0.0.1; each is set by ``OTEL_KIT_STACK_PORT_<NAME>``."""

    otlp_grpc: int = 4317
    otlp_http: int = 4318
    collector_health: int = 13133
    collector_metrics: int = 8888
    prometheus: int = 9090
    alertmanager: int = 9093
    tempo: int = 3200
    tempo_grpc: int = 9095
    tempo_otlp_grpc: int = 14317
    tempo_otlp_http: int = 14318
    loki: int = 3100
    loki_grpc: int = 9096
    grafana: int = 3000

    @staticmethod
    def variable(name: str) -> str:
        """The environment variable that sets the port called ``name``."""
        return f"{PREFIX}PORT_{name.upper()}"


def _xdg(env: Mapping[str, str], variable: str, fallback: str) -> Path:
    base = env.get(variable, "")
    # The XDG specification has relative paths ignored.
    return (Path(base) if base.startswith("/") else Path.home() / fallback) / "otel-kit"


@dataclass(frozen=True)
class StackSettings:
    """How the stack runs.

    Attributes:
        data_dir: data, logs and state of the running stack (``OTEL_KIT_STACK_DATA_DIR``).
        cache_dir: built binaries (``OTEL_KIT_STACK_CACHE_DIR``).
        ports: see :class:`Ports`.
        traces_days, metrics_days, logs_days, audit_days: retention in days (``OTEL_KIT_STACK_TRACES_DAYS``, ...).
        start_timeout: seconds that the whole stack may take until it is ready (``OTEL_KIT_STACK_START_TIMEOUT``).
        stop_timeout: seconds that a part may take to stop before it is killed (``OTEL_KIT_STACK_STOP_TIMEOUT``).
        tail_sampling: load the collector's ``sample-tail`` layer (``OTEL_KIT_STACK_TAIL_SAMPLING``).
        alert_webhook: where Alertmanager delivers (``OTEL_KIT_STACK_ALERT_WEBHOOK``).
    """

    data_dir: Path
    cache_dir: Path
    ports: Ports = field(default_factory=Ports)
    traces_days: int = 7
    metrics_days: int = 30
    logs_days: int = 30
    audit_days: int = 365
    start_timeout: float = 120.0
    stop_timeout: float = 30.0
    tail_sampling: bool = False
    alert_webhook: str = "http://127.0.0.1:9094/alerts"

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> StackSettings:
        """Read the settings from ``env`` (the process's environment by default).

        Raises:
            StackError: a value is not what its setting takes; the message names both.
        """
        env = os.environ if env is None else env
        ports = Ports(**{f.name: _port(env, f.name, getattr(Ports, f.name)) for f in fields(Ports)})
        _reject_shared(ports)
        return cls(
            data_dir=_path(env, "DATA_DIR", _xdg(env, "XDG_DATA_HOME", ".local/share") / "stack"),
            cache_dir=_path(env, "CACHE_DIR", _xdg(env, "XDG_CACHE_HOME", ".cache") / "stack"),
            ports=ports,
            traces_days=_days(env, "TRACES_DAYS", cls.traces_days),
            metrics_days=_days(env, "METRICS_DAYS", cls.metrics_days),
            logs_days=_days(env, "LOGS_DAYS", cls.logs_days),
            audit_days=_days(env, "AUDIT_DAYS", cls.audit_days),
            start_timeout=_seconds(env, "START_TIMEOUT", cls.start_timeout),
            stop_timeout=_seconds(env, "STOP_TIMEOUT", cls.stop_timeout),
            tail_sampling=_switch(env, "TAIL_SAMPLING", cls.tail_sampling),
            alert_webhook=_url(env, "ALERT_WEBHOOK", cls.alert_webhook),
        )


def _reject(variable: str, value: str, accepted: str) -> StackError:
    return StackError(f"{variable}={value!r}: expected {accepted}")


def _path(env: Mapping[str, str], name: str, default: Path) -> Path:
    value = env.get(PREFIX + name, "")
    return Path(value).expanduser().absolute() if value else default


def _port(env: Mapping[str, str], name: str, default: int) -> int:
    variable = Ports.variable(name)
    value = env.get(variable, "")
    if not value:
        return default
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 65535:
        raise _reject(variable, value, "a port, 1 to 65535")
    return int(value)


def _reject_shared(ports: Ports) -> None:
    taken: dict[int, str] = {}
    for entry in fields(Ports):
        port: int = getattr(ports, entry.name)
        if port in taken:
            first, second = Ports.variable(taken[port]), Ports.variable(entry.name)
            raise StackError(f"{first} and {second} are both {port}: every port of the stack must be its own")
        taken[port] = entry.name


def _days(env: Mapping[str, str], name: str, default: int) -> int:
    value = env.get(PREFIX + name, "")
    if not value:
        return default
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 3650:
        raise _reject(PREFIX + name, value, "whole days, 1 to 3650")
    return int(value)


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    value = env.get(PREFIX + name, "")
    if not value:
        return default
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 3600:
        raise _reject(PREFIX + name, value, "seconds, above 0 and at most 3600")
    return seconds


def _switch(env: Mapping[str, str], name: str, default: bool) -> bool:
    value = env.get(PREFIX + name, "")
    if not value:
        return default
    if value.lower() not in {"true", "false", "1", "0"}:
        raise _reject(PREFIX + name, value, "true or false")
    return value.lower() in {"true", "1"}


def _url(env: Mapping[str, str], name: str, default: str) -> str:
    value = env.get(PREFIX + name, "")
    if not value:
        return default
    if not value.startswith(("http://", "https://")):
        raise _reject(PREFIX + name, value, "an http:// or https:// URL")
    return value
