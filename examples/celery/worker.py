"""What the celery command loads, for workers and for beat."""

from __future__ import annotations

import otel_kit

otel_kit.configure("parcels")

from jobs import app  # noqa: E402 - telemetry first

__all__ = ["app"]
