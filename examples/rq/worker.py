"""The worker's settings, which `rq worker -c worker` imports before anything else."""

import os

import otel_kit

otel_kit.configure("press")

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
QUEUES = ["posters"]
