"""The directory that everything is kept in: of this user's own, closed to all others."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

_PROBE = ".probe-"
#: What may lie in a directory of ours: one folder per service, named as `otel_kit.telemetry.spool.folder` does.
_OURS = re.compile(rf"[\w.-]+-[0-9a-f]{{8}}|{re.escape(_PROBE)}.*", re.ASCII)
_ANYTHING = re.compile(r".*", re.DOTALL)


class SpoolUnusable(OSError):  # noqa: N818 - says what it is
    """A directory in which telemetry cannot be kept. The message names it, what is wrong, and what would be right."""


def default_root() -> Path:
    """Where telemetry is kept unless somebody says otherwise: the user's state directory.

    ``$XDG_STATE_HOME/otel-kit``, or ``~/.local/state/otel-kit`` (XDG Base Directory Specification 0.8). A user without a
    home gets a path that `open_root` refuses. Never anything below ``/tmp``, where others may be first.
    """
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # unset, or invalid by the specification
        state = Path("~/.local/state")
        with suppress(RuntimeError):
            state = state.expanduser()
    return state / "otel-kit"


def open_root(path: Path) -> Path:
    """Make sure of a directory that telemetry can be kept in, and make it where there is none.

    One of ours that group or others may enter is closed to them, if it is empty or holds nothing but spools. Otherwise
    it is somebody's, ``/tmp`` as root maybe, and changing it is not ours to do.

    Args:
        path: The directory, absolute.

    Raises:
        SpoolUnusable: It is none, not ours alone, or cannot be written to.
    """
    if not path.is_absolute():
        raise SpoolUnusable(f"{path} is not an absolute path: name a directory from / on (is HOME unset?)")
    close_to_others(path, _OURS)
    probe = path / f"{_PROBE}{secrets.token_hex(8)}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, b"\0")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        raise SpoolUnusable(
            f"{path} cannot be written to ({error.strerror}): name a directory on a disk with room, writable, with flock"
        ) from error
    return path


def close_to_others(path: Path, contents: re.Pattern[str] = _ANYTHING) -> None:
    """Make sure of a directory of our own with mode 0700.

    Args:
        path: The directory. It is made where there is none, and so are its parents, closed to others as well.
        contents: What the names in it must look like, or it is left as it is when others may enter.

    Raises:
        SpoolUnusable: There is something else, or it is not ours.
    """
    try:
        _make(path)
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise SpoolUnusable(f"{path} is a symbolic link: name the directory itself")
        if not stat.S_ISDIR(status.st_mode):
            raise SpoolUnusable(f"{path} is not a directory: name one, or a path where one can be made")
        _own(path, contents)
    except SpoolUnusable:
        raise
    except OSError as error:
        raise SpoolUnusable(
            f"{path} cannot be used ({error.strerror}): name a directory that this user may make, enter and write to"
        ) from error


def _make(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        if path.parent == path:
            raise
        _make(path.parent)
        _make(path)
        return
    path.chmod(0o700)  # a umask may have taken our own rights


def _own(path: Path, contents: re.Pattern[str]) -> None:
    # By descriptor from here on: what is looked at is what is changed.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid():
            raise SpoolUnusable(
                f"{path} belongs to user {status.st_uid} and this is user {os.geteuid()}: name a directory of its own"
            )
        if mode & 0o777 == 0o700:
            return
        if mode & 0o077:
            others = [name for name in os.listdir(descriptor) if not contents.fullmatch(name)]  # noqa: PTH208
            if others or mode & stat.S_ISVTX:
                raise SpoolUnusable(
                    f"{path} is open to group or others (mode {mode:04o}) and serves other ends too: "
                    "make it 0700, or name a directory that holds nothing else"
                )
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
