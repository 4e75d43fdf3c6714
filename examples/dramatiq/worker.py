"""The worker: ``dramatiq worker``."""

from __future__ import annotations

import otel_kit

otel_kit.configure("thumbnails")

import jobs  # noqa: E402, F401 - telemetry first
