"""A Python environment of arq's own: it needs redis-py < 6, which Celery and RQ beside it do not take.

Made once, from the package registries alone, and kept; made anew when its requirements or ours change.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: Beside this repository and its extra for arq, whose versions pyproject.toml says.
EXTRAS = ("arq", "redis")
_STAMP = "otel-kit-is-installed"


def python() -> str:
    """The path of an interpreter that has arq and this repository, editable. Made when it is missing, which takes a moment."""
    folder = _cache() / _fingerprint()
    found = folder / "bin" / "python"
    if not (folder / _STAMP).exists():
        with _alone(folder):
            if not (folder / _STAMP).exists():  # another process may have made it meanwhile
                _make(folder, found)
    return str(found)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "otel-kit" / "test-envs"


def _fingerprint() -> str:
    """What the environment depends on. Entry points are part of what is installed, and so is the place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted: dict[str, Any] = {
        "python": sys.version,
        "root": str(ROOT),
        "dependencies": project["dependencies"],
        "extras": [project["optional-dependencies"][extra] for extra in EXTRAS],
        "entry points": project["entry-points"],
    }
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Tests run in several processes: one makes it, the others wait. The lock goes with its process, however that ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(folder: Path, interpreter: Path) -> None:
    print(f"making an environment for arq, once: {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted process has left
    requirement = f"{ROOT}[{','.join(EXTRAS)}]"
    uv = shutil.which("uv")
    if uv is not None:
        _run(uv, "venv", "--quiet", "--python", sys.executable, str(folder))
        _run(uv, "pip", "install", "--quiet", "--python", str(interpreter), "--editable", requirement)
    else:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(
            str(interpreter),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--editable",
            requirement,
        )
    (folder / _STAMP).touch()
    print("the environment for arq is ready", file=sys.stderr, flush=True)


def _run(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if ran.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")


if __name__ == "__main__":
    print(python())
