"""docker-compose.yml keeps to itself, gives nobody more than they need, and pins what it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
PROJECT = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = PROJECT["services"]
IMAGES = {
    name: re.fullmatch(r"\$\{(OTEL_KIT_\w+_IMAGE):-(.+)\}", service["image"]) for name, service in SERVICES.items()
}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["CHOWN"] if name == "queues" else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert "mem_limit" in service
    assert not service.keys() & {"privileged", "pid", "ipc", "devices", "userns_mode"}
    assert service.get("network_mode", "none") == "none"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_restarts_unless_it_is_one_step(name: str) -> None:
    assert SERVICES[name].get("restart") == (None if name == "queues" else "unless-stopped")


def test_ports_are_published_on_this_machine_alone() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) >= 8
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{OTEL_KIT_\w+:-\d+\}:\d+", port) for port in published)


def test_no_socket_of_the_engine_is_handed_in_and_configuration_is_read_only() -> None:
    assert "docker.sock" not in TEXT
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", ())]
    assert all(mount.endswith(":ro") for mount in mounts if mount.startswith("."))
    for mount in mounts:
        source = mount.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in PROJECT["volumes"], mount


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_and_named_once(name: str) -> None:
    image = IMAGES[name]
    assert image is not None
    assert TEXT.count(image[0]) == 1
    if "build" not in SERVICES[name]:
        assert re.search(r":v?\d+\.?\d*", image[2]), "no version"


def test_the_images_are_of_the_versions_that_are_built_natively() -> None:
    builder = yaml.safe_load((ROOT / "collector/builder.yaml").read_text())["dist"]["version"]
    prometheus = re.search(
        r"prometheus/prometheus v0\.(\d)(\d+)\.(\d+)", (ROOT / "backends/prometheus/go.mod").read_text()
    )
    loki = re.search(r"grafana/loki/v3 v(\S+)", (ROOT / "backends/loki/go.mod").read_text())
    assert prometheus is not None
    assert loki is not None
    pinned = {name: image[2] for name, image in IMAGES.items() if image}
    assert pinned["otelcol"] == f"otel/opentelemetry-collector-contrib:{builder}"
    # Prometheus 3.14.0 is the Go module v0.314.0.
    assert pinned["prometheus"] == f"prom/prometheus:v{prometheus[1]}.{prometheus[2]}.{prometheus[3]}"
    assert pinned["loki"] == f"grafana/loki:{loki[1]}"


def test_the_collector_loads_the_layers_of_its_readme_in_order_and_binds_to_a_name() -> None:
    readme = (ROOT / "collector/README.md").read_text()
    order = re.findall(r"--config=(\w+)\.yaml", readme.split("```")[1])
    given = [re.fullmatch(r"--config=/etc/otelcol/(\w+)\.yaml", each) for each in SERVICES["otelcol"]["command"]]
    assert [match[1] for match in given if match] == order
    assert SERVICES["otelcol"]["environment"]["OTELCOL_LISTEN"] == SERVICES["otelcol"]["hostname"] == "otelcol"
    assert not any("0.0.0.0" in layer.read_text() for layer in (ROOT / "collector/config").glob("*.yaml"))


def test_prometheus_scrapes_services_that_exist() -> None:
    config = yaml.safe_load((ROOT / "backends/prometheus/prometheus.yml").read_text())
    targets = {
        target for job in config["scrape_configs"] for static in job["static_configs"] for target in static["targets"]
    }
    assert {target.split(":")[0] for target in targets} <= {*SERVICES, "localhost"}


@pytest.mark.parametrize("name", ["otelcol", "tempo", "prometheus", "loki", "grafana"])
def test_go_collects_garbage_before_the_memory_limit_kills(name: str) -> None:
    mib = {"m": 1, "g": 1024}
    limit = SERVICES[name]["mem_limit"]
    soft = int(SERVICES[name]["environment"]["GOMEMLIMIT"].removesuffix("MiB"))
    assert soft <= 0.82 * int(limit[:-1]) * mib[limit[-1]]


def test_grafana_lets_nobody_in_without_a_password_that_is_in_no_file_of_ours() -> None:
    settings = SERVICES["grafana"]["environment"]
    assert settings["GF_AUTH_ANONYMOUS_ENABLED"] == settings["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert "GF_SECURITY_ADMIN_PASSWORD" not in settings
    assert settings["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana-admin-password"
    assert PROJECT["secrets"]["grafana-admin-password"]["file"].endswith("/.secrets/grafana-admin-password}")
    assert ".secrets/" in (ROOT / ".gitignore").read_text().split()


def test_grafana_is_told_where_every_data_source_is() -> None:
    sources = (ROOT / "grafana/provisioning/datasources/otel-kit.yaml").read_text()
    asked = set(re.findall(r"url: \$(\w+)", sources))
    given = SERVICES["grafana"]["environment"]
    assert asked == {"OTEL_KIT_TEMPO_URL", "OTEL_KIT_PROMETHEUS_URL", "OTEL_KIT_LOKI_URL"}
    assert {given[name].split("//")[1].split(":")[0] for name in asked} <= SERVICES.keys()


def test_only_the_demo_is_behind_a_profile() -> None:
    behind = {name for name, service in SERVICES.items() if "profiles" in service}
    assert behind == {"gateway", "store", "worker", "scheduler", "bot", "redis", "postgres"}
    assert all(SERVICES[name]["profiles"] == ["demo"] for name in behind)
    assert PROJECT["networks"]["demo"] == {"internal": True}
