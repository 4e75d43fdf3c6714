"""An error's fingerprint and category: the same fault gets the same fingerprint on every host and after every deploy."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Final

from otel_kit.telemetry import plain
from otel_kit.telemetry.limits import cut
from otel_kit.telemetry.plain import text_of

#: Where code is that is not the application's; our own wrappers are not either, also where they are installed from a checkout.
_LIBRARIES: Final = tuple(
    {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        sys.base_prefix,
        str(Path(__file__).parents[1]),
    }
)

#: A category by the words that occur in the names of an exception's classes, most specific first.
_CATEGORIES: Final = (
    ("timeout", ("timeout", "timelimit", "deadline")),
    ("permission", ("permission", "forbidden", "unauthor", "accessdenied")),
    ("database", ("sqlalchemy", "psycopg", "asyncpg", "sqlite3", "databaseerror", "integrityerror", "operationalerror")),
    ("dependency", ("httpstatus", "httperror", "badgateway", "serviceunavailable", "botocore", "grpc")),
    ("network", ("connection", "network", "socket", "dns", "gaierror", "ssl", "brokenpipe")),
    ("resource", ("memoryerror", "nospace", "toomany", "resource", "quota", "workerlost")),
    ("validation", ("validation", "valueerror", "typeerror", "keyerror", "decode", "parse", "schema")),
)  # fmt: skip


def type_name(error: BaseException) -> str:
    """The exception's qualified class name, `error.type` of the semantic conventions."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def message(error: BaseException) -> str:
    """What the error says, cut to a bearable length; also where its ``str()`` fails."""
    return cut(text_of(error))


def stacktrace(error: BaseException) -> str:
    """The traceback as text, cut in the middle."""
    return plain.stacktrace(type(error), error, error.__traceback__)


def fingerprint(error: BaseException) -> str:
    """12 hex digits of SHA-1 over the exception's type and the application's own frames.

    Frames count by module and function, without line numbers, so that an edit above a fault does not make it a new one.
    """
    frames = _frames(error.__traceback__)
    text = "|".join([type_name(error), *frames])
    return hashlib.sha1(text.encode("utf-8", "replace"), usedforsecurity=False).hexdigest()[:12]


def _frames(trace: TracebackType | None) -> list[str]:
    return [
        f"{frame.f_globals.get('__name__', '?')}:{frame.f_code.co_name}"
        for frame, _line in walk_tb(trace)
        if not frame.f_code.co_filename.startswith((*_LIBRARIES, "<"))
    ]


def category(error: BaseException) -> str:
    """Where to look first: timeout, network, database, dependency, validation, resource, permission or code."""
    names = " ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__[:-2]).lower()
    for found, words in _CATEGORIES:
        if any(word in names for word in words):
            return found
    return "code"
