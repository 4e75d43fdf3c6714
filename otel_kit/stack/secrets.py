"""The password of Grafana's admin: made once, kept in a file that only its owner can read."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

from otel_kit.stack.errors import StackError

#: What docker-compose.yml reads: where the file is, and as whom Grafana runs in order to be its owner.
FILE_VARIABLE: Final = "OTEL_KIT_GRAFANA_PASSWORD_FILE"
USER_VARIABLE: Final = "OTEL_KIT_GRAFANA_USER"

_NAME: Final = "grafana-admin-password"
#: Random bytes of a new password: 192 bits, 32 characters.
_RANDOM_BYTES: Final = 24


def grafana_password_file(directory: Path) -> Path:
    """The file with the password, made with mode 0600 when there is none yet. Safe to call from several processes.

    Parameters:
        directory: Made with mode 0700 when it does not exist.

    Raises:
        StackError: The file is empty, or others can read it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / _NAME
    if not path.exists():
        _create(path, secrets.token_urlsafe(_RANDOM_BYTES))
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise StackError(
            f"{path} holds a password and has mode {mode:04o}: others can read it. Run `chmod 600 {path}`, or remove it "
            "for a new one (a Grafana that has started already keeps its old password)."
        )
    if not path.read_text().strip():
        raise StackError(f"{path} is empty: write a password into it, or remove it for a new one.")
    return path


def compose_environment(directory: Path) -> dict[str, str]:
    """The variables that docker-compose.yml needs for Grafana; the password itself is not among them."""
    path = grafana_password_file(directory)
    # A bind mount keeps the owner, and 0600 lets nobody else in. Grafana's data directory is open to any user id.
    return {FILE_VARIABLE: str(path), USER_VARIABLE: str(path.stat().st_uid)}


def _create(path: Path, password: str) -> None:
    """Write the file whole or not at all, and never over another one."""
    temporary = path.with_name(f".{_NAME}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(password)
        # Another process may have been first; its password counts.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
