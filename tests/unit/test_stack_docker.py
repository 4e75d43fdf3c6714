"""Finding a Docker engine, and what is said when there is none or when it cannot pull."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from otel_kit.stack import assets
from otel_kit.stack.docker import DockerStack, Engine, find_engine
from otel_kit.stack.endpoints import State
from otel_kit.stack.errors import StackError
from otel_kit.stack.settings import Ports, StackSettings


def docker_command(folder: Path, info: str, compose: str = "echo Docker Compose version v2") -> dict[str, str]:
    """A `docker` command that does ``info`` for `docker info` and ``compose`` for `docker compose`; returns its PATH."""
    command = folder / "docker"
    command.write_text(
        f'#!/bin/sh\necho "$*" >>{folder}/calls\ncase $1 in\ninfo) {info};;\ncompose) {compose};;\nesac\n'
    )
    command.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_no_docker_on_path(tmp_path: Path) -> None:
    assert find_engine({"PATH": str(tmp_path)}) == "there is no `docker` on PATH"


def test_docker_without_an_engine(tmp_path: Path) -> None:
    env = docker_command(tmp_path, "echo cannot connect >&2; exit 1")
    assert find_engine(env) == "no Docker engine answers `docker info`"


def test_an_engine_that_hangs_is_given_up(tmp_path: Path) -> None:
    env = docker_command(tmp_path, "exec sleep 30")
    started = time.monotonic()
    assert find_engine(env, timeout=0.3) == "no Docker engine answers `docker info`"
    assert time.monotonic() - started < 5


def test_an_engine_without_compose(tmp_path: Path) -> None:
    env = docker_command(tmp_path, "echo 27.0", "exit 1")
    assert find_engine(env) == "Docker has no Compose plugin (`docker compose version` fails)"


def test_an_engine_with_compose(tmp_path: Path) -> None:
    env = docker_command(tmp_path, "echo 27.0")
    assert find_engine(env) == Engine(str(tmp_path / "docker"), "27.0")


def stack(tmp_path: Path, compose: str, ports: Ports | None = None) -> tuple[DockerStack, StackSettings]:
    docker_command(tmp_path, "echo 27.0", compose)
    settings = StackSettings(data_dir=tmp_path / "data", cache_dir=tmp_path, start_timeout=1, ports=ports or Ports())
    return DockerStack(Engine(str(tmp_path / "docker"), "27.0"), assets.find(), settings), settings


@pytest.mark.parametrize(
    "said",
    [
        "Error response from daemon: pull access denied for grafana/loki",
        "failed to resolve reference docker.io/grafana/loki:3.7.8: dial tcp: i/o timeout",
        "toomanyrequests: You have reached your pull rate limit",
    ],
)
def test_images_that_cannot_be_pulled_lead_to_the_native_stack(tmp_path: Path, said: str) -> None:
    containers, settings = stack(tmp_path, f"echo '{said}' >&2; exit 1")
    with pytest.raises(StackError, match=r"(?s)cannot pull the images.*otel-kit stack up --native") as caught:
        containers.up()
    assert said in str(caught.value)
    assert State.load(settings) is None


def test_another_failure_is_told_as_it_is(tmp_path: Path) -> None:
    containers, _ = stack(tmp_path, "echo 'container otel-kit-loki-1 is unhealthy' >&2; exit 1")
    with pytest.raises(StackError, match=r"(?s)`docker compose up` failed.*loki-1 is unhealthy") as caught:
        containers.up()
    assert "pull" not in str(caught.value)


@contextmanager
def answering() -> Iterator[int]:
    """A port that answers every GET with 200, as the collector's health check does."""

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_up_and_down_keep_the_state_that_other_commands_read(tmp_path: Path) -> None:
    with answering() as port:
        containers, settings = stack(tmp_path, "true", Ports(collector_health=port, grafana=3001))
        containers.up()
    state = State.load(settings)
    assert state is not None
    assert (state.engine, state.endpoints.grafana) == ("docker", "http://127.0.0.1:3001")
    containers.down(delete_data=True)
    assert State.load(settings) is None
    calls = (tmp_path / "calls").read_text()
    assert "compose --project-name otel-kit --file" in calls
    assert "up --detach --wait" in calls
    assert "down --volumes" in calls


def test_containers_without_a_collector_that_answers_are_not_up(tmp_path: Path) -> None:
    containers, settings = stack(tmp_path, "true", Ports(collector_health=1))
    with pytest.raises(StackError, match=r"collector does not answer at http://127\.0\.0\.1:1: .*stack logs otelcol"):
        containers.up()
    assert State.load(settings) is None


def test_compose_is_given_the_settings_and_where_the_password_is(tmp_path: Path) -> None:
    with answering() as port:
        containers, settings = stack(tmp_path, f"env >{tmp_path}/env", Ports(collector_health=port, loki=3199))
        containers.up()
    given = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert given["OTEL_KIT_STACK_PORT_LOKI"] == "3199"
    assert given["OTEL_KIT_STACK_PORT_COLLECTOR_HEALTH"] == str(port)
    assert given["OTEL_KIT_STACK_LOGS_DAYS"] == str(settings.logs_days)
    assert given["OTEL_KIT_GRAFANA_PASSWORD_FILE"] == str(containers.password_file)
    assert containers.password_file.read_text() not in given.values()
