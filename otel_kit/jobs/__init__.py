"""Jobs: what a job is, how its context travels, how a run becomes telemetry; free of any framework.

For users: `publish` and `run` for queues that live in a SQL table, `worker` for what works on them, `canary` to measure the
real road through a queue.
"""

from __future__ import annotations

from otel_kit.jobs.canary import canary, canary_job, canary_name
from otel_kit.jobs.table import publish, run, worker

__all__ = ["canary", "canary_job", "canary_name", "publish", "run", "worker"]
