"""How each part of the native stack is started: command, environment, ports, and the URL that says it is ready."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from otel_kit.stack import render
from otel_kit.stack.assets import Assets
from otel_kit.stack.settings import StackSettings

LAYERS = ("receive", "protect", "derive", "sample", "fan_out", "telemetry")
TAIL_LAYERS = ("receive", "protect", "derive", "sample", "sample-tail", "fan_out", "telemetry")
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Launch:
    """One process to start.

    Attributes:
        name: the part's name.
        arguments: what follows the binary on its command line.
        env: variables on top of the user's environment.
        ports: names (of :class:`~otel_kit.stack.settings.Ports`) of the ports it listens on.
        ready_url: answers 200 once the part serves.
    """

    name: str
    arguments: tuple[str, ...]
    env: dict[str, str]
    ports: tuple[str, ...]
    ready_url: str


def layer_flags(assets: Assets, layers: tuple[str, ...] = LAYERS) -> tuple[str, ...]:
    """``--config`` flags for the collector, in merge order."""
    return tuple(f"--config={assets.collector / 'config' / f'{layer}.yaml'}" for layer in layers)


def launches(assets: Assets, settings: StackSettings) -> list[Launch]:
    """Every process of the native stack, the collector last. Writes the rendered configurations into the data folder."""
    makers: tuple[Callable[[Assets, StackSettings], Launch], ...] = (
        _tempo,
        _prometheus,
        _loki,
        _alertmanager,
        _collector,
    )
    return [make(assets, settings) for make in makers]


def _folder(settings: StackSettings, name: str) -> Path:
    folder = settings.data_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _rendered(settings: StackSettings, name: str, text: str) -> Path:
    path = _folder(settings, "config") / name
    path.write_text(text)
    return path


def _tempo(assets: Assets, settings: StackSettings) -> Launch:
    ports = settings.ports
    return Launch(
        "tempo",
        (f"-config.file={assets.backends / 'tempo' / 'tempo.yaml'}", "-config.expand-env=true"),
        {
            "TEMPO_LISTEN": _HOST,
            "TEMPO_HTTP_PORT": str(ports.tempo),
            "TEMPO_GRPC_PORT": str(ports.tempo_grpc),
            "TEMPO_OTLP_GRPC_PORT": str(ports.tempo_otlp_grpc),
            "TEMPO_OTLP_HTTP_PORT": str(ports.tempo_otlp_http),
            "TEMPO_DATA": str(_folder(settings, "tempo")),
            "TEMPO_RETENTION": f"{settings.traces_days * 24}h",
        },
        ("tempo", "tempo_grpc", "tempo_otlp_grpc", "tempo_otlp_http"),
        f"http://{_HOST}:{ports.tempo}/ready",
    )


def _prometheus(assets: Assets, settings: StackSettings) -> Launch:
    render.rules_dir(settings).mkdir(parents=True, exist_ok=True)
    config = _rendered(settings, "prometheus.yml", render.prometheus(assets, settings))
    address = f"{_HOST}:{settings.ports.prometheus}"
    return Launch(
        "prometheus",
        (
            f"--config.file={config}",
            f"--storage.tsdb.path={_folder(settings, 'prometheus')}",
            f"--web.listen-address={address}",
            "--web.enable-otlp-receiver",
            "--web.enable-lifecycle",
            "--enable-feature=exemplar-storage,created-timestamp-zero-ingestion",
            "--log.level=warn",
        ),
        {},
        ("prometheus",),
        f"http://{address}/-/ready",
    )


def _loki(assets: Assets, settings: StackSettings) -> Launch:
    ports = settings.ports
    return Launch(
        "loki",
        (f"-config.file={assets.backends / 'loki' / 'loki.yaml'}", "-config.expand-env=true"),
        {
            "LOKI_LISTEN": _HOST,
            "LOKI_HTTP_PORT": str(ports.loki),
            "LOKI_GRPC_PORT": str(ports.loki_grpc),
            "LOKI_DATA": str(_folder(settings, "loki")),
            "LOKI_RETENTION": f"{settings.logs_days * 24}h",
            "LOKI_AUDIT_RETENTION": f"{settings.audit_days * 24}h",
        },
        ("loki", "loki_grpc"),
        f"http://{_HOST}:{ports.loki}/ready",
    )


def _alertmanager(assets: Assets, settings: StackSettings) -> Launch:
    config = _rendered(settings, "alertmanager.yml", render.alertmanager(assets, settings))
    address = f"{_HOST}:{settings.ports.alertmanager}"
    return Launch(
        "alertmanager",
        (
            f"--config.file={config}",
            f"--storage.path={_folder(settings, 'alertmanager')}",
            f"--web.listen-address={address}",
            # Empty: no cluster. The default listens on every interface.
            "--cluster.listen-address=",
            "--log.level=warn",
        ),
        {},
        ("alertmanager",),
        f"http://{address}/-/ready",
    )


def collector_env(settings: StackSettings) -> dict[str, str]:
    """What the collector's layers read from the environment; what the user has set himself is left to him."""
    ports = settings.ports
    return {
        "OTELCOL_HOST_NAME": os.environ.get("OTELCOL_HOST_NAME", socket.gethostname()),
        # 80 % of the memory limit's default, so that garbage goes before data is refused.
        "GOMEMLIMIT": os.environ.get("GOMEMLIMIT", "410MiB"),
        "OTELCOL_LISTEN": _HOST,
        "OTELCOL_OTLP_GRPC_PORT": str(ports.otlp_grpc),
        "OTELCOL_OTLP_HTTP_PORT": str(ports.otlp_http),
        "OTELCOL_HEALTH_PORT": str(ports.collector_health),
        "OTELCOL_METRICS_PORT": str(ports.collector_metrics),
        "OTELCOL_STORAGE": str(settings.data_dir / "collector"),
        "TEMPO_OTLP_ENDPOINT": f"{_HOST}:{ports.tempo_otlp_grpc}",
        "PROMETHEUS_OTLP_ENDPOINT": f"http://{_HOST}:{ports.prometheus}/api/v1/otlp",
        "LOKI_OTLP_ENDPOINT": f"http://{_HOST}:{ports.loki}/otlp",
    }


def _collector(assets: Assets, settings: StackSettings) -> Launch:
    return Launch(
        "otelcol-kit",
        layer_flags(assets, TAIL_LAYERS if settings.tail_sampling else LAYERS),
        collector_env(settings),
        ("otlp_grpc", "otlp_http", "collector_health", "collector_metrics"),
        f"http://{_HOST}:{settings.ports.collector_health}/",
    )
