"""A real stack for the tests: our builds on free ports, data in a temporary folder, built when missing."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from otel_kit.stack import assets, build
from otel_kit.stack.endpoints import Endpoints
from otel_kit.stack.native import NativeStack
from otel_kit.stack.pins import PARTS, SERVERS
from otel_kit.stack.query import StackQuery
from otel_kit.stack.settings import Ports, StackSettings
from tests.stack.otlp import Sender


def free_ports() -> Ports:
    """Ports that are free now, below the range from which the kernel takes ports for outgoing connections.

    A part that is stopped in a test must find its port free when it starts again; one out of that range might by then
    belong to any client's connection. And tests run in several processes, each with a stack of its own: a port stays with
    the process that got it, by a lock that ends with that.
    """
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = iter(random.sample(range(low - 12000, low), 1000))
    return Ports(**{entry.name: next(filter(_take, candidates)) for entry in fields(Ports)})


def _take(port: int) -> bool:
    folder = Path(tempfile.gettempdir(), f"otel-kit-test-ports-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    # Never closed: the lock lasts as long as this process.
    lock = os.open(folder / str(port), os.O_CREAT | os.O_WRONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@dataclass(frozen=True)
class Stack:
    """The running stack. `native.stop(name)`, `.kill(name)` and `.start(name)` act on single parts."""

    native: NativeStack
    settings: StackSettings
    endpoints: Endpoints
    query: StackQuery
    sender: Sender


@pytest.fixture(scope="session")
def binaries() -> dict[str, Path]:
    """Every binary, tools too, from the real cache."""
    return build.ensure(PARTS, assets.find(), StackSettings.from_env().cache_dir)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> StackSettings:
    folder = tmp_path_factory.mktemp("stack")
    return StackSettings(data_dir=folder, cache_dir=StackSettings.from_env().cache_dir, ports=free_ports())


@pytest.fixture(scope="session")
def session_stack(binaries: dict[str, Path], settings: StackSettings) -> Iterator[Stack]:
    servers = {part.name: binaries[part.name] for part in SERVERS}
    with pytest.MonkeyPatch.context() as patch:
        # Derived metrics leave often, so that no test waits for them.
        patch.setenv("OTELCOL_DERIVE_INTERVAL", "1s")
        native = NativeStack(assets.find(), settings, servers)
        native.up()
        sender = Sender(native.endpoints.otlp_http)
        try:
            with StackQuery(native.endpoints) as query:
                yield Stack(native, settings, native.endpoints, query, sender)
        finally:
            sender.close()
            native.down()


@pytest.fixture
def stack(session_stack: Stack) -> Stack:
    """The stack with every part running, whatever the test before has stopped."""
    for name in session_stack.native.parts:
        session_stack.native.start(name)
    return session_stack
