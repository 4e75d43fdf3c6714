"""Wires whatever is installed: every `opentelemetry_instrumentor` entry point whose library is there.

One instrumentation that fails is named in one log line and the rest go on; upstream's own loader would stop there.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from opentelemetry.instrumentation.dependencies import get_dependency_conflicts, get_dist_dependency_conflicts

from otel_kit.jobs.leases import keep, lease_settings

_logger = logging.getLogger(__name__)

GROUP: Final = "opentelemetry_instrumentor"
#: Upstream's instrumentations that ours stand in for. Ours keep them off when somebody else loads them.
SUPERSEDED: Final = frozenset({"celery", "fastapi", "sqlalchemy"})
#: Wired by otel_kit.telemetry.logs, whatever is installed.
_HANDLED_ELSEWHERE: Final = frozenset({"logging"})


def instrument_all(disabled: Sequence[str] = ()) -> list[str]:
    """Wire every installed library.

    Args:
        disabled: Names to leave out; ``*`` leaves out all. ``celery`` means ours too.

    Returns:
        The names of those that are on now.
    """
    if "*" in disabled:
        return []
    found = sorted(entry_points(group=GROUP), key=lambda entry: (not entry.name.startswith("otel_kit_"), entry.name))
    return [entry.name for entry in found if wanted(entry.name, disabled) and instrument(entry)]


def wanted(name: str, disabled: Sequence[str]) -> bool:
    """Whether an instrumentation is to be loaded: not switched off, not superseded by ours."""
    plain = name.removeprefix("otel_kit_")
    return not {name, plain, "*"} & set(disabled) and name not in SUPERSEDED | _HANDLED_ELSEWHERE


def instrument(entry: EntryPoint) -> bool:
    """Switch one instrumentation on; False when its library is missing, does not fit, or when it fails."""
    try:
        if not available(entry):
            return False
        instrumentor: Any = entry.load()()
        if instrumentor.is_instrumented_by_opentelemetry:
            return True
        instrumentor.instrument(skip_dep_check=True)
    except ModuleNotFoundError as missing:
        _logger.debug("otel-kit: %s is not wired: %s", entry.name, missing)
        return False
    except Exception:
        _logger.exception("otel-kit: instrumentation %r failed and is left out; the rest go on", entry.name)
        return False
    return True


def available(entry: EntryPoint) -> bool:
    """Whether the library that an instrumentation is for is installed, in a version that it supports."""
    if entry.dist is None:
        return True
    if entry.name.startswith("otel_kit_"):
        # All of ours live in one distribution, whose own dependencies say nothing about a single library.
        needed: Any = entry.load()()
        return get_dependency_conflicts(needed.instrumentation_dependencies()) is None
    return get_dist_dependency_conflicts(entry.dist) is None


def keep_leases() -> None:
    """Lease this process's jobs where OTEL_KIT_LEASES names a Redis. Workers whose broker is one do so by themselves."""
    if lease_settings().url is None:
        return
    try:
        store: Any = importlib.import_module("otel_kit.integrations.redis_leases").leases_for(None)
    except ModuleNotFoundError as missing:
        _logger.warning("otel-kit: OTEL_KIT_LEASES needs the package %s: pip install 'otel-kit[redis]'", missing.name)
        return
    keep(store)
