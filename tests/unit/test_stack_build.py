"""Building: the cache key, the lock, interruption, and what is said when Go is missing or a build fails."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from otel_kit.stack import build, pins
from otel_kit.stack.assets import Assets
from otel_kit.stack.errors import StackError
from otel_kit.stack.processes import start_of
from otel_kit.stack.progress import LineProgress
from otel_kit.stack.query import poll

PART = pins.Part("hello", "backends/hello", "./cmd", pin_files=("go.mod",))


def fake_go(folder: Path, on_build: str, version: str = "go1.99.0\nauto") -> Path:
    """A `go` that answers `env` and `list`, and does ``on_build`` (with the output path in $out) when it is to build.

    The folder of every module is ``module`` in ``folder``; what `go mod` is told goes to ``told`` there.
    """
    go = folder / "bin" / "go"
    go.parent.mkdir(parents=True, exist_ok=True)
    find_out = 'while [ "$1" != -o ]; do shift; done; out=$2'
    go.write_text(
        f"#!/bin/sh\ncase $1 in\nenv) echo '{version}';;\n"
        f"list) if [ $2 = -m ]; then echo {folder}/module; else echo a; echo b; fi;;\nmod) echo $* >>{folder}/told;;\n"
        f"build) {find_out}; echo built >>{folder}/builds; {on_build};;\nesac\n"
    )
    go.chmod(0o755)
    return go


@pytest.fixture
def assets(tmp_path: Path) -> Assets:
    pin = tmp_path / "assets" / "backends" / "hello" / "go.mod"
    pin.parent.mkdir(parents=True)
    pin.write_text("module hello\n\ngo 1.26.5\n")
    return Assets(tmp_path / "assets")


@pytest.fixture
def go_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def ensure(assets: Assets, cache: Path) -> Path:
    return build.ensure([PART], assets, cache, LineProgress(io.StringIO()))["hello"]


def test_without_go_the_message_says_what_to_install(
    assets: Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match=r"no `go` on PATH. Install Go 1\.26\.5 or newer, or start a Docker engine"):
        ensure(assets, tmp_path / "cache")


@pytest.mark.parametrize("version", ["go1.26.4\nlocal", "go1.20.1\nauto"])
def test_a_go_that_is_too_old_and_may_not_fetch_a_newer_one_is_refused(
    assets: Assets, go_path: Path, version: str
) -> None:
    fake_go(go_path, "exit 1", version)
    with pytest.raises(StackError, match=r"is Go 1\.2\d\.\d, too old .* Install Go 1\.26\.5"):
        ensure(assets, go_path / "cache")


def test_an_older_go_that_fetches_the_newer_one_by_itself_is_taken(go_path: Path) -> None:
    go = fake_go(go_path, "exit 1", "go1.24.0\nauto")
    assert build.find_go((1, 26, 5)) == str(go)


def test_a_part_is_built_once_and_needs_no_go_after_that(assets: Assets, go_path: Path) -> None:
    go = fake_go(go_path, "echo binary >$out")
    path = ensure(assets, go_path / "cache")
    assert path.read_text() == "binary\n"
    go.unlink()
    assert ensure(assets, go_path / "cache") == path


def test_the_key_follows_the_pins_of_the_part_alone(assets: Assets) -> None:
    other = assets.backends / "other" / "go.mod"
    other.parent.mkdir()
    other.write_text("module other\n")
    neighbour = pins.Part("other", "backends/other", ".", pin_files=("go.mod",))
    before = PART.key(assets), neighbour.key(assets)
    other.write_text("module other // changed\n")
    assert PART.key(assets) == before[0]
    assert neighbour.key(assets) != before[1]


def test_a_failed_build_names_the_part_and_shows_what_the_compiler_said(assets: Assets, go_path: Path) -> None:
    fake_go(go_path, "echo main.go:1: undefined: x; exit 2")
    with pytest.raises(StackError, match=r"(?s)Building hello failed.*undefined: x"):
        ensure(assets, go_path / "cache")
    assert build.missing([PART], assets, go_path / "cache") == [PART]


RUN = """
import sys
from pathlib import Path
from otel_kit.stack import build
from otel_kit.stack.assets import Assets
from tests.unit.test_stack_build import PART
build.ensure([PART], Assets(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def in_process(assets: Assets, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(assets.root), str(cache)], stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    )


EDITED = replace(PART, edits=(pins.Edit("example.org/m", "deep/file.go", before="second\n", text="corrected\n"),))


def module(folder: Path, text: str) -> Path:
    """A module as it lies in Go's cache, which cannot be written to."""
    file = folder / "module" / "deep" / "file.go"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    for path in (file, file.parent, file.parent.parent):
        path.chmod(path.stat().st_mode & 0o555)
    return file


def test_a_correction_goes_into_a_copy_of_its_module(assets: Assets, go_path: Path) -> None:
    original = module(go_path, "first\nsecond\n")
    copy = go_path / "cache" / "building" / "hello" / "corrected-0"
    fake_go(go_path, f"cat {copy}/deep/file.go >$out; find {copy} ! -perm -200 >>$out")
    built = build.ensure([EDITED], assets, go_path / "cache", LineProgress(io.StringIO()))["hello"]

    assert built.read_text() == "first\ncorrected\nsecond\n"
    assert original.read_text() == "first\nsecond\n"
    assert (go_path / "told").read_text() == f"mod edit -replace=example.org/m={copy}\n"
    assert not copy.exists()
    assert EDITED.key(assets) != PART.key(assets)


@pytest.mark.parametrize("text", ["first\n", "second\nsecond\n"])
def test_a_correction_that_does_not_fit_is_not_left_out_in_silence(assets: Assets, go_path: Path, text: str) -> None:
    module(go_path, text)
    fake_go(go_path, "echo binary >$out")
    with pytest.raises(StackError, match=r"the correction to example.org/m does not fit its deep/file.go"):
        build.ensure([EDITED], assets, go_path / "cache", LineProgress(io.StringIO()))


def test_two_builds_at_once_share_one(assets: Assets, go_path: Path) -> None:
    fake_go(go_path, "sleep 1; echo binary >$out")
    with in_process(assets, go_path / "cache") as first, in_process(assets, go_path / "cache") as second:
        outputs = [process.communicate(timeout=60)[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert (go_path / "builds").read_text() == "built\n"
    assert sum("another process is building it" in output for output in outputs) == 1


def test_ctrl_c_ends_the_build_with_its_children_and_the_next_one_succeeds(assets: Assets, go_path: Path) -> None:
    # sleep's process id, to see whether it is gone as well.
    fake_go(go_path, f"sleep 60 & echo $! >{go_path}/child; wait")
    with in_process(assets, go_path / "cache") as process:
        deadline = time.monotonic() + 30
        while not (go_path / "child").exists() or not (go_path / "child").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=10)[1]
    assert process.returncode != 0
    assert "KeyboardInterrupt" in output
    child = int((go_path / "child").read_text())
    assert poll(lambda: start_of(child) is None, 10)
    assert build.missing([PART], assets, go_path / "cache") == [PART]
    fake_go(go_path, "echo binary >$out")
    assert ensure(assets, go_path / "cache").read_text() == "binary\n"


def test_plain_progress_says_what_is_built_how_long_it_takes_and_when_it_is_done() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream, every=0.0)
    progress.started(pins.LOKI, 2000)
    progress.step(pins.LOKI, "compiling net/http", 7)
    progress.finished(pins.LOKI, 12.4, cached=False)
    progress.finished(pins.TEMPO, 0.0, cached=True)
    assert stream.getvalue().splitlines() == [
        "loki: building, up to 2000 packages (about 7 min the first time on 2 cores)",
        "loki: compiling net/http, 7 of up to 2000 packages",
        "loki: built in 12 s",
        "tempo: already built",
    ]


def test_pins_name_existing_files_and_the_newest_go_that_one_asks_for() -> None:
    from otel_kit.stack import assets as real

    found = real.find()
    for part in pins.PARTS:
        assert len(part.key(found)) == 16
    assert pins.required_go(found) >= (1, 26, 0)
    assert pins.builder_module(found).startswith("go.opentelemetry.io/collector/cmd/builder@v0.")
    assert os.access(found.compose_file, os.R_OK)
