"""Traces, metrics and correlated logs for APIs and background jobs, in one line.

import otel_kit

otel_kit.configure("shop")
"""

from __future__ import annotations

from otel_kit._version import __version__
from otel_kit.settings import ConfigurationError, drop_refused_limits

drop_refused_limits()  # before the SDK is imported

from otel_kit import jobs  # noqa: E402
from otel_kit.bootstrap import configure, flush, shutdown  # noqa: E402
from otel_kit.jobs.decorator import job  # noqa: E402
from otel_kit.jobs.steps import progress, step  # noqa: E402
from otel_kit.telemetry.audit import audit  # noqa: E402

__all__ = [
    "ConfigurationError",
    "__version__",
    "audit",
    "configure",
    "flush",
    "job",
    "jobs",
    "progress",
    "shutdown",
    "step",
]
