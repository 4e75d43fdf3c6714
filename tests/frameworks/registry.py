"""All frameworks of the suite."""

from __future__ import annotations

import importlib
import importlib.util

from tests.frameworks.adapter import Framework

_MODULES = ("celery", "rq", "arq", "dramatiq", "apscheduler", "sql_table", "plain")


def frameworks() -> list[Framework]:
    """One instance of every adapter: each module offers them as ``FRAMEWORKS``."""
    found = [name for name in _MODULES if importlib.util.find_spec(f"tests.frameworks.{name}")]
    return [each for name in found for each in importlib.import_module(f"tests.frameworks.{name}").FRAMEWORKS]
