"""The tests' own engine comes and goes without a trace."""

from __future__ import annotations

from pathlib import Path

from otel_kit.stack import assets
from otel_kit.stack.settings import StackSettings
from tests.stack.engine import Engine


def test_an_engine_leaves_no_directory_and_no_mount() -> None:
    with Engine(assets.find(), StackSettings.from_env().cache_dir) as engine:
        home = Path(engine.host.removeprefix("unix://")).parent
        assert engine.docker("info", "--format", "{{.ServerVersion}} {{.DockerRootDir}}").split()[1] == str(
            home / "data"
        )
        assert engine.docker("compose", "version")
    assert not home.exists()
    assert str(home) not in Path("/proc/mounts").read_text()
