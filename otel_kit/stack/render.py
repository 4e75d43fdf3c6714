"""Native copies of the configurations that cannot read the environment: Prometheus's and Alertmanager's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from otel_kit.stack.assets import Assets
from otel_kit.stack.settings import StackSettings

_HOST = "127.0.0.1"


def prometheus(assets: Assets, settings: StackSettings) -> str:
    """``backends/prometheus/prometheus.yml`` with the native stack's addresses, retention and Alertmanager."""
    folder = assets.backends / "prometheus"
    config: dict[str, Any] = yaml.safe_load((folder / "prometheus.yml").read_text())
    ports = settings.ports
    targets = {
        "otelcol": ports.collector_metrics,
        "prometheus": ports.prometheus,
        "tempo": ports.tempo,
        "loki": ports.loki,
    }
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"{_HOST}:{targets[job['job_name']]}"]}]
    config["storage"]["tsdb"]["retention"] = {"time": f"{settings.metrics_days}d"}
    # A relative path is looked up beside the configuration file, and this copy lies elsewhere.
    config["rule_files"] = [str(folder / pattern) for pattern in config["rule_files"]]
    config["rule_files"].append(str(rules_dir(settings) / "*.yml"))
    config["alerting"] = {
        "alertmanagers": [{"static_configs": [{"targets": [f"{_HOST}:{ports.alertmanager}"]}]}],
    }
    return yaml.safe_dump(config, sort_keys=False)


def rules_dir(settings: StackSettings) -> Path:
    """Rule files (``*.yml``) put here are read by the native Prometheus besides the committed ones."""
    return settings.data_dir / "rules"


def alertmanager(assets: Assets, settings: StackSettings) -> str:
    """``backends/alertmanager/alertmanager.yml``, delivering to the webhook of the settings."""
    config: dict[str, Any] = yaml.safe_load((assets.backends / "alertmanager" / "alertmanager.yml").read_text())
    for receiver in config["receivers"]:
        for webhook in receiver.get("webhook_configs", []):
            webhook["url"] = settings.alert_webhook
    return yaml.safe_dump(config, sort_keys=False)
