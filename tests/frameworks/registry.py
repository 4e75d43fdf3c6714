"""All frameworks of the suite."""

from __future__ import annotations

import importlib

from tests.frameworks.adapter import Framework

_MODULES = ("celery", "rq", "arq", "dramatiq", "apscheduler", "sql_table", "plain")


def frameworks() -> list[Framework]:
    """One instance of every adapter: each module offers them as ``FRAMEWORKS``."""
    return [each for name in _MODULES for each in importlib.import_module(f"tests.frameworks.{name}").FRAMEWORKS]
