"""Starting and stopping processes: ports that are taken, parts that die, process ids that were reused."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_kit.stack import assets
from otel_kit.stack.errors import StackError
from otel_kit.stack.native import NativeStack, check_ports
from otel_kit.stack.pins import SERVERS
from otel_kit.stack.processes import Process, spawn, start_of
from otel_kit.stack.settings import Ports, StackSettings


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Process]:
    process = spawn(["/bin/sleep", "60"], os.environ, tmp_path / "log")
    yield process
    process.kill()
    assert not process.alive()


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def stack_of(tmp_path: Path, behaviour: dict[str, str], start_timeout: float = 20.0) -> NativeStack:
    """A stack of shell scripts: those not named sleep and never get ready."""
    ports = {}
    held = [socket.socket() for _ in Ports.__dataclass_fields__]
    for name, holder in zip(Ports.__dataclass_fields__, held, strict=True):
        holder.bind(("127.0.0.1", 0))
        ports[name] = holder.getsockname()[1]
    for holder in held:
        holder.close()
    settings = StackSettings(
        data_dir=tmp_path / "data",
        cache_dir=tmp_path,
        ports=Ports(**ports),
        start_timeout=start_timeout,
        stop_timeout=5,
    )
    binaries = {part.name: script(tmp_path / part.name, behaviour.get(part.name, "exec sleep 60")) for part in SERVERS}
    return NativeStack(assets.find(), settings, binaries)


def test_a_taken_port_is_named_with_the_setting_that_moves_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(StackError, match=f"Port {port} on 127.0.0.1 is taken .*OTEL_KIT_STACK_PORT_LOKI"):
            check_ports(Ports(loki=port), ["loki"])
        check_ports(Ports(loki=port), ["tempo_grpc"] if port != Ports.tempo_grpc else [])


def test_nothing_is_started_when_a_port_is_taken(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, {})
    taken = int(stack.endpoints.loki.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", taken)), pytest.raises(StackError, match="OTEL_KIT_STACK_PORT_LOKI"):
        stack.up()
    assert [part.pid for part in stack.status()] == [None] * len(SERVERS)
    assert not stack.log("tempo").exists()


def test_a_part_that_dies_while_starting_is_named_with_the_end_of_its_log_and_the_rest_is_stopped(
    tmp_path: Path,
) -> None:
    stack = stack_of(tmp_path, {"loki": "for i in $(seq 30); do echo line $i; done; echo no such schema >&2; exit 3"})
    with pytest.raises(StackError) as caught:
        stack.up()
    message = str(caught.value)
    assert message.startswith("loki ended while it was starting")
    assert "no such schema" in message
    assert "line 30" in message
    assert "line 10\n" not in message
    assert [part.pid for part in stack.status()] == [None] * len(SERVERS)


def test_a_part_that_does_not_get_ready_is_named_with_the_limit(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, {}, start_timeout=0.5)
    with pytest.raises(StackError, match=r"tempo was not ready within OTEL_KIT_STACK_START_TIMEOUT=0\.5 seconds"):
        stack.up()
    assert [part.pid for part in stack.status()] == [None] * len(SERVERS)


def test_a_part_that_ignores_the_request_to_stop_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    stubborn = spawn(["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], os.environ, log)
    while "ready" not in log.read_text():
        assert stubborn.alive()
    assert stubborn.stop(timeout=0.2) is False
    assert not stubborn.alive()


def test_a_process_that_reuses_the_id_is_never_signalled(sleeper: Process) -> None:
    former = Process(sleeper.pid, "another boot, another moment")
    assert not former.alive()
    former.signal(signal.SIGKILL)
    assert former.stop(timeout=0.1)
    former.kill()
    assert sleeper.alive()


def test_down_leaves_the_process_alone_that_a_stale_pid_file_names(tmp_path: Path, sleeper: Process) -> None:
    stack = stack_of(tmp_path, {})
    Process(sleeper.pid, "another boot, another moment").save(tmp_path / "data" / "run" / "tempo.pid")
    assert stack.process("tempo") is None
    assert stack.down() == []
    assert sleeper.alive()
    assert not (tmp_path / "data" / "run" / "tempo.pid").exists()


def test_a_spoilt_pid_file_counts_for_nothing(tmp_path: Path) -> None:
    for text in ("", "12", "[1]", '{"pid": "x", "started": 1}'):
        (tmp_path / "a.pid").write_text(text)
        assert Process.load(tmp_path / "a.pid") is None


def test_a_zombie_is_not_alive() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has reaped it
    assert start_of(pid) is None
    os.waitpid(pid, 0)


def test_down_deletes_the_data_only_when_asked(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, {})
    stack.down()
    assert (tmp_path / "data" / "tempo").is_dir()
    stack.down(delete_data=True)
    assert not (tmp_path / "data").exists()
