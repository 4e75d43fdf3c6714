"""Build the native stack from its Go modules into the cache.

Each part lies in ``<cache>/<key>/<name>/bin/<name>``, the key made from its pin files: changing one backend rebuilds
that one. A part appears there whole, by one rename. Interrupted builds go on where they were, because Go keeps every
compiled package in a cache of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from otel_kit.stack.assets import Assets
from otel_kit.stack.errors import StackError
from otel_kit.stack.pins import COLLECTOR, GO_FLAGS, Edit, Part, builder_module, required_go
from otel_kit.stack.progress import BuildProgress, LineProgress


def binary(part: Part, assets: Assets, cache_dir: Path) -> Path:
    """Where the built part lies, or would lie."""
    return cache_dir / part.key(assets) / part.name / "bin" / part.name


def missing(parts: Iterable[Part], assets: Assets, cache_dir: Path) -> list[Part]:
    """Those of ``parts`` that are not in the cache."""
    return [part for part in parts if not binary(part, assets, cache_dir).is_file()]


def ensure(
    parts: Iterable[Part], assets: Assets, cache_dir: Path, progress: BuildProgress | None = None
) -> dict[str, Path]:
    """Build what is missing and return the path of every part's binary by its name.

    Needs Go only when something is missing. Safe to call from several processes at once.

    Raises:
        StackError: Go is missing or too old, or a build failed; the message carries the compiler's last lines.
    """
    parts = list(parts)
    progress = progress or LineProgress()
    if todo := missing(parts, assets, cache_dir):
        go = find_go(required_go(assets))
        cache_dir.mkdir(parents=True, exist_ok=True)
        # `go build` uses every core by itself; a second one at a time pays only from four cores on.
        workers = max(1, min(len(todo), (os.cpu_count() or 1) // 2))
        stop = threading.Event()
        with ThreadPoolExecutor(workers, thread_name_prefix="stack-build") as pool:
            jobs = [pool.submit(_Build(part, assets, cache_dir, go, progress, stop).run) for part in todo]
            try:
                done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            except KeyboardInterrupt:
                stop.set()
                raise
            failures = [error for job in done if (error := job.exception()) is not None]
            if failures:
                stop.set()
                raise failures[0]
    return {part.name: binary(part, assets, cache_dir) for part in parts}


def find_go(required: tuple[int, int, int], env: Mapping[str, str] | None = None) -> str:
    """Return the path of a Go toolchain that is new enough.

    Raises:
        StackError: there is none, or it is older than ``required`` and may not fetch a newer one (GOTOOLCHAIN).
    """
    wanted = ".".join(str(n) for n in required)
    advice = f"Install Go {wanted} or newer, or start a Docker engine: then nothing needs to be built."
    go = shutil.which("go", path=(env or os.environ).get("PATH"))
    if go is None:
        raise StackError(f"The native stack is built with Go, and there is no `go` on PATH. {advice}")
    command = [go, "env", "GOVERSION", "GOTOOLCHAIN"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603
    match = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", answer.stdout)
    if match is None:
        raise StackError(f"`{go} env GOVERSION` does not answer with a version: {answer.stdout + answer.stderr}")
    found = (int(match[1]), int(match[2]), int(match[3] or 0))
    fixed = "local" in answer.stdout.partition("\n")[2] or found < (1, 21, 0)
    if found < required and fixed:
        raise StackError(f"{go} is Go {'.'.join(str(n) for n in found)}, too old to build the native stack. {advice}")
    return go


class _InterruptedError(Exception):
    """Another part failed or the user pressed Ctrl-C."""


class _Build:
    """The build of one part."""

    def __init__(
        self, part: Part, assets: Assets, cache_dir: Path, go: str, progress: BuildProgress, stop: threading.Event
    ) -> None:
        self._part = part
        self._assets = assets
        self._cache = cache_dir
        self._go = go
        self._progress = progress
        self._stop = stop
        self._work = cache_dir / "building" / part.name
        self._target = binary(part, assets, cache_dir)
        # GOFLAGS would change what comes out and is not part of the key; cgo would need a C compiler.
        self._env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}

    def run(self) -> None:
        started = time.monotonic()
        with self._lock():
            if not self._target.is_file():
                self._build()
                self._progress.finished(self._part, time.monotonic() - started, cached=False)
                return
        self._progress.finished(self._part, 0.0, cached=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One builder per part and machine; the lock goes with its process, however that ends."""
        with (self._cache / f"{self._part.name}.lock").open("w") as file:
            told = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        self._progress.waiting(self._part)
                        told = True
                    if self._stop.wait(0.5):
                        raise _InterruptedError from None
            yield

    def _build(self) -> None:
        # A copy, because an installed package may lie where one cannot write, and go wants to.
        shutil.rmtree(self._work, ignore_errors=True)
        source = self._work / "source"
        source.mkdir(parents=True)
        for name in self._part.pin_files:
            shutil.copy(self._assets.root / self._part.source / name, source / name)
        if self._part is COLLECTOR:
            source = self._generate_collector(source)
        out = self._work / "bin"
        out.mkdir()
        flags = [*GO_FLAGS, "-tags", self._part.tags]
        packages = self._count_packages(source)
        for number, edit in enumerate(self._part.edits):
            self._correct(edit, source, self._work / f"corrected-{number}")
        self._progress.started(self._part, packages)
        self._go_command(["build", "-v", *flags, "-o", str(out / self._part.name), self._part.package], source)
        folder = self._target.parent
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        out.rename(folder)
        shutil.rmtree(self._work, ignore_errors=True)

    def _generate_collector(self, source: Path) -> Path:
        """Have the builder write the distribution's main package and resolve its modules."""
        self._progress.step(self._part, "resolving modules", 0)
        builder = ["run", builder_module(self._assets), "--skip-compilation", "--config", "builder.yaml"]
        self._go_command(builder, source)
        return source / "_build"

    def _count_packages(self, source: Path) -> int:
        self._progress.step(self._part, "downloading modules", 0)
        listing = self._go_command(["list", "-deps", "-tags", self._part.tags, self._part.package], source, keep=None)
        return sum(not line.startswith("go: ") for line in listing)

    def _correct(self, edit: Edit, source: Path, copy: Path) -> None:
        """Put a corrected copy of a module in its place; the module cache itself belongs to everybody."""
        found = self._go_command(["list", "-m", "-f", "{{.Dir}}", edit.module], source)
        shutil.copytree(found[-1], copy)
        file = copy / edit.file
        text = file.read_text() if file.is_file() else ""
        if text.count(edit.before) != 1:
            raise StackError(
                f"Building {self._part.name} failed: the correction to {edit.module} does not fit its {edit.file}."
            )
        for path in (copy, *copy.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)  # the cache's own may neither be written to nor, later, be removed
        file.write_text(text.replace(edit.before, edit.text + edit.before))
        self._go_command(["mod", "edit", f"-replace={edit.module}={copy}"], source)

    def _go_command(self, arguments: list[str], folder: Path, keep: int | None = 15) -> list[str]:
        """Run go and return its last ``keep`` lines (all with None), telling the progress about each."""
        tail: deque[str] = deque(maxlen=keep)
        compiled = 0
        # A session of its own: Ctrl-C at the terminal then reaches only us, and we stop go with all its children.
        with subprocess.Popen(  # noqa: S603
            [self._go, *arguments],
            cwd=folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            watcher = threading.Thread(target=self._kill_on_stop, args=(process,), daemon=True)
            watcher.start()
            assert process.stdout is not None
            for line in map(str.rstrip, process.stdout):
                tail.append(line)
                if line.startswith("go: downloading "):
                    self._progress.step(self._part, line.removeprefix("go: "), compiled)
                elif arguments[0] == "build":
                    compiled += 1
                    self._progress.step(self._part, f"compiling {line}", compiled)
            code = process.wait()
            watcher.join()
        if self._stop.is_set() and code != 0:
            raise _InterruptedError
        if code != 0:
            raise StackError(
                f"Building {self._part.name} failed (go {arguments[0]} ended with {code}). Its last lines:\n  "
                + "\n  ".join(list(tail)[-15:])
            )
        return list(tail)

    def _kill_on_stop(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            if self._stop.wait(0.2):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                return
