"""docker-compose.yml as it stands, on a real engine: everything gets healthy, and the demo's telemetry arrives.

The images are stand-ins of the same versions (images.py). Grafana's is not Grafana.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from otel_kit.demo.questions import MATRIX, SIGNALS, WHOLE, Run
from otel_kit.stack import assets
from otel_kit.stack.endpoints import Endpoints
from otel_kit.stack.query import StackQuery, poll
from otel_kit.stack.secrets import compose_environment
from otel_kit.stack.settings import Ports, StackSettings
from tests.stack import images
from tests.stack.conftest import free_ports
from tests.stack.engine import Engine

# Whichever test comes first makes the images and brings everything up.
pytestmark = pytest.mark.timeout(420)

ROOT = assets.find().root
BACKENDS = {"otelcol", "tempo", "prometheus", "loki", "grafana"}
DEMO = {"gateway", "store", "worker", "scheduler", "bot", "redis", "postgres"}
#: Grafana as another user than root, so that the password's file is readable for its owner alone and for nobody else.
GRAFANA_USER = 4720


@dataclass(frozen=True)
class Project:
    """Our compose file on an engine, on ports of its own."""

    engine: Engine
    ports: Ports
    environment: dict[str, str]

    def compose(self, *arguments: str, timeout: float = 240) -> str:
        command = ("compose", "--project-name", "otel-kit", "--file", str(ROOT / "docker-compose.yml"), *arguments)
        return self.engine.docker(*command, env=self.environment, timeout=timeout)

    def containers(self) -> dict[str, dict[str, Any]]:
        """What the engine says about every container, by service."""
        ids = self.compose("--profile", "demo", "ps", "--all", "--quiet").split()
        found = json.loads(self.engine.docker("inspect", *ids)) if ids else []
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in found}


def port_variables(ports: Ports) -> dict[str, str]:
    return {Ports.variable(name): str(port) for name, port in asdict(ports).items()}


@pytest.fixture(scope="module")
def engine(binaries: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that has every image of the compose file."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    tags = {name: service["image"].partition(":-")[2].removesuffix("}") for name, service in services.items()}
    makers: dict[str, Callable[[], images.StandIn]] = {
        "otelcol": partial(images.collector, binaries),
        "tempo": partial(images.tempo, binaries),
        "prometheus": partial(images.prometheus, binaries),
        "loki": partial(images.loki, binaries),
        "grafana": partial(images.grafana_place, ROOT),
        "gateway": partial(images.pipeline, ROOT),
        "redis": images.redis,
        "postgres": images.postgres,
    }
    archive = tmp_path_factory.mktemp("images") / "layer.tar"
    with Engine(assets.find(), StackSettings.from_env().cache_dir) as engine:
        for name, make in makers.items():
            image = make()
            image.layer.write(archive)
            engine.load(archive, tags[name], image.changes)
            archive.unlink()
        yield engine


@pytest.fixture(scope="module")
def project(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The compose file with profile demo, up and healthy."""
    ports = free_ports()
    folder = tmp_path_factory.mktemp("secrets")
    given = compose_environment(folder)
    os.chown(given["OTEL_KIT_GRAFANA_PASSWORD_FILE"], GRAFANA_USER, -1)
    version = f"compose-{secrets.token_hex(4)}"
    environment = {
        **port_variables(ports),
        **compose_environment(folder),
        "OTEL_KIT_DEMO_PORT": str(next(iter(asdict(free_ports()).values()))),
        "OTEL_KIT_DEMO_VERSION": version,
        "OTEL_KIT_DEMO_LOAD": "--rate 3",
    }
    project = Project(engine, ports, environment)
    try:
        project.compose("--profile", "demo", "up", "--detach", "--no-build", "--wait", "--wait-timeout", "180")
        yield project
    finally:
        project.compose("--profile", "demo", "down", "--volumes", "--timeout", "10")


@pytest.fixture(scope="module")
def run(project: Project) -> Run:
    return Run(project.environment["OTEL_KIT_DEMO_VERSION"], time.time() - 60)


@pytest.fixture(scope="module")
def query(project: Project) -> Iterator[StackQuery]:
    with StackQuery(Endpoints.docker(project.ports)) as query:
        yield query


def test_every_service_is_up_and_healthy_where_it_can_tell(project: Project) -> None:
    states = {name: each["State"] for name, each in project.containers().items()}
    assert states.keys() == BACKENDS | DEMO | {"queues"}
    assert (states["queues"]["Status"], states["queues"]["ExitCode"]) == ("exited", 0)
    running = {name: state for name, state in states.items() if name != "queues"}
    assert {name: state["Status"] for name, state in running.items() if state["Status"] != "running"} == {}
    health = {name: state["Health"]["Status"] for name, state in running.items() if "Health" in state}
    assert health == dict.fromkeys((*BACKENDS - {"otelcol"}, "gateway", "store", "redis", "postgres"), "healthy")
    assert httpx.get(f"http://127.0.0.1:{project.ports.collector_health}", trust_env=False).status_code == 200


def test_no_service_has_been_restarted(project: Project) -> None:
    assert {name: each["RestartCount"] for name, each in project.containers().items() if each["RestartCount"]} == {}


def test_the_engine_has_confined_every_container(project: Project) -> None:
    for name, each in project.containers().items():
        host = each["HostConfig"]
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert not host["Privileged"], name
        assert host["Memory"] > 0, name
        addresses = {binding["HostIp"] for bindings in (host["PortBindings"] or {}).values() for binding in bindings}
        assert addresses <= {"127.0.0.1"}, name
        if name != "queues":
            assert each["Config"]["User"].split(":")[0] not in {"", "0", "root"}, name


@pytest.mark.parametrize(("service", "signal"), MATRIX)
def test_a_signal_of_a_service_is_found(query: StackQuery, run: Run, service: str, signal: str) -> None:
    assert poll(lambda: SIGNALS[signal](query, run, service), timeout=90, interval=0.5)


@pytest.mark.parametrize("what", WHOLE)
def test_the_whole_system_is_seen(query: StackQuery, run: Run, what: str) -> None:
    assert poll(lambda: WHOLE[what](query, run), timeout=90, interval=0.5)


def test_prometheus_scrapes_collector_and_backends(query: StackQuery) -> None:
    up = {row["metric"]["job"]: row["value"][1] for row in poll(lambda: query.prom_query("up"), timeout=60)}
    assert up == dict.fromkeys(("otelcol", "prometheus", "tempo", "loki"), "1")


def test_a_collector_that_starts_again_still_owns_its_queues(project: Project, query: StackQuery) -> None:
    project.compose("restart", "--timeout", "10", "otelcol")
    before = time.time()

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{project.ports.collector_health}", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    assert poll(answers, timeout=30)
    fresh = f"max(timestamp(otel_kit_process_up)) > {before}"
    assert poll(lambda: query.prom_query(fresh), timeout=60)


def test_grafana_is_given_its_password_and_its_files(project: Project) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{project.ports.grafana}", trust_env=False) as client:
        assert client.get("/user").text == str(GRAFANA_USER)
        assert client.get("/password-length").text == "32"
        assert client.get("/files").text.split() == [
            "/etc/grafana/provisioning/dashboards/otel-kit.yaml",
            "/etc/grafana/provisioning/datasources/otel-kit.yaml",
            "/etc/otel-kit/dashboards/overview.json",
        ]
    assert Path(project.environment["OTEL_KIT_GRAFANA_PASSWORD_FILE"]).stat().st_uid == GRAFANA_USER


def test_the_bot_says_goodbye_when_it_is_stopped(project: Project, query: StackQuery) -> None:
    project.compose("--profile", "demo", "stop", "--timeout", "20", "bot")
    assert project.containers()["bot"]["State"]["ExitCode"] != 137
    assert poll(lambda: query.prom_query('otel_kit_process_up{service_name="bot"} == 0'), timeout=30)


def test_stack_up_takes_the_engine_when_one_answers(project: Project, engine: Engine, tmp_path: Path) -> None:
    project.compose("--profile", "demo", "down", "--volumes", "--timeout", "10")
    ports = free_ports()
    environment = {
        **engine.environment,
        **port_variables(ports),
        "OTEL_KIT_STACK_DATA_DIR": str(tmp_path),
        "OTEL_KIT_STACK_CACHE_DIR": str(tmp_path / "no-native-build-is-needed"),
    }

    def stack(*arguments: str) -> str:
        command = [sys.executable, "-m", "otel_kit.cli.main", "stack", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = stack("up")
    try:
        assert said.startswith("Docker ")
        password = tmp_path / "secrets" / "grafana-admin-password"
        assert str(password) in said.replace("\n", "")
        assert password.stat().st_mode & 0o777 == 0o600
        for port, path in ((ports.collector_health, "/"), (ports.tempo, "/ready"), (ports.loki, "/ready")):
            assert httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code == 200
        assert "otelcol" in stack("status")
    finally:
        stack("down", "--delete-data")
    assert engine.docker("ps", "--all", "--quiet") == ""
    assert engine.docker("volume", "ls", "--quiet") == ""
