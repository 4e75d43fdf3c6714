"""Every configuration is one that its own program takes, and nothing listens beyond this machine."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from otel_kit.stack import assets, parts, render
from otel_kit.stack.settings import StackSettings
from tests.stack.conftest import Stack

ASSETS = assets.find()
LAYER_SETS = {
    "default": parts.LAYERS,
    "tail sampling": parts.TAIL_LAYERS,
    "edge": (*parts.LAYERS, "edge"),
    "edge with tail sampling": (*parts.TAIL_LAYERS, "edge"),
}


def check(command: list[str | Path], env: dict[str, str] | None = None) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})})
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("layers", LAYER_SETS.values(), ids=LAYER_SETS)
@pytest.mark.parametrize("urls", ["", "[https://a.example/health, https://b.example]"], ids=["no URLs", "URLs"])
def test_collector_takes_each_merged_set_of_layers(
    binaries: dict[str, Path], tmp_path: Path, layers: tuple[str, ...], urls: str
) -> None:
    env = {"OTELCOL_STORAGE": str(tmp_path)} | ({"OTELCOL_UPTIME_URLS": urls} if urls else {})
    check([binaries["otelcol-kit"], "validate", *parts.layer_flags(ASSETS, layers)], env)


def test_collector_refuses_a_layer_that_names_what_it_does_not_have(binaries: dict[str, Path], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("processors: {batch: {}}\n")
    flags = [*parts.layer_flags(ASSETS), f"--config={wrong}"]
    with pytest.raises(AssertionError, match='unknown type: "batch"'):
        check([binaries["otelcol-kit"], "validate", *flags], {"OTELCOL_STORAGE": str(tmp_path)})


def test_every_pipeline_limits_memory_first_and_none_buffers_in_memory() -> None:
    merged: dict[str, list[str]] = {}
    for layer in parts.LAYERS:
        config = yaml.safe_load((ASSETS.collector / "config" / f"{layer}.yaml").read_text())
        for name, pipeline in config["service"].get("pipelines", {}).items():
            merged.setdefault(name, []).extend(pipeline.get("processors", []))
        assert "batch" not in config.get("processors", {})
    fed_from_outside = {"traces", "metrics", "logs", "metrics/host"}
    assert {merged[name][0] for name in fed_from_outside} == {"memory_limiter"}


def test_each_exporter_queues_on_disk_with_a_bound_in_bytes_and_never_gives_up() -> None:
    config = yaml.safe_load((ASSETS.collector / "config" / "fan_out.yaml").read_text())
    assert len(config["exporters"]) == 3
    for exporter in config["exporters"].values():
        queue = exporter["sending_queue"]
        assert (queue["storage"], queue["sizer"]) == ("file_storage", "bytes")
        assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"


def test_prometheus_takes_its_configuration_as_committed_and_as_rendered(
    binaries: dict[str, Path], settings: StackSettings, tmp_path: Path
) -> None:
    check([binaries["promtool"], "check", "config", ASSETS.backends / "prometheus" / "prometheus.yml"])
    rendered = tmp_path / "prometheus.yml"
    rendered.write_text(render.prometheus(ASSETS, settings))
    check([binaries["promtool"], "check", "config", rendered])


def test_alertmanager_takes_its_configuration_as_committed_and_as_rendered(
    binaries: dict[str, Path], settings: StackSettings, tmp_path: Path
) -> None:
    check([binaries["amtool"], "check-config", ASSETS.backends / "alertmanager" / "alertmanager.yml"])
    rendered = tmp_path / "alertmanager.yml"
    rendered.write_text(render.alertmanager(ASSETS, settings))
    check([binaries["amtool"], "check-config", rendered])


def test_tempo_and_loki_take_their_configurations(binaries: dict[str, Path], tmp_path: Path) -> None:
    env = {"TEMPO_DATA": str(tmp_path), "LOKI_DATA": str(tmp_path)}
    tempo, loki = ASSETS.backends / "tempo" / "tempo.yaml", ASSETS.backends / "loki" / "loki.yaml"
    check([binaries["tempo"], f"-config.file={tempo}", "-config.expand-env=true", "-config.verify=true"], env)
    check([binaries["loki"], f"-config.file={loki}", "-config.expand-env=true", "-verify-config"], env)


def test_both_tempo_files_agree_on_ports_and_windows() -> None:
    native, image = ((ASSETS.backends / "tempo" / name).read_text() for name in ("tempo.yaml", "tempo-3.yaml"))
    for agreed in (r"TEMPO_\w+:-[\w./]+", r"ingestion_time_range_slack: \w+"):
        assert set(re.findall(agreed, native)) == set(re.findall(agreed, image))


def test_no_configuration_names_all_interfaces() -> None:
    files = [*ASSETS.collector.glob("config/*.yaml"), *ASSETS.backends.glob("*/*.y*ml")]
    assert len(files) > 10
    for path in files:
        assert "0.0.0.0" not in path.read_text(), path


def test_the_running_stack_listens_on_this_machine_only(stack: Stack) -> None:
    listening = {
        fields[9]: fields[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for fields in map(str.split, Path(table).read_text().splitlines()[1:])
        if fields[3] == "0A"  # TCP_LISTEN
    }
    for name in stack.native.parts:
        process = stack.native.process(name)
        assert process is not None
        links = (str(entry.readlink()) for entry in Path(f"/proc/{process.pid}/fd").iterdir())
        sockets = [listening[link[8:-1]] for link in links if link.startswith("socket:[") and link[8:-1] in listening]
        assert sockets, name
        # 127.0.0.1, in the kernel's byte order.
        assert {address.split(":")[0] for address in sockets} == {"0100007F"}, name
