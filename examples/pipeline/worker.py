"""The worker: `celery -A worker worker`."""

import otel_kit
from tasks import app

otel_kit.configure("worker")

__all__ = ["app"]
