"""Ends of a run for which RQ raises nothing: an error of ours names them in ``error.type``."""

from __future__ import annotations


class JobStoppedError(Exception):
    """Somebody stopped the job while it ran (`rq.command.send_stop_job_command`)."""


class RetriesExhaustedError(Exception):
    """The job returned `rq.Retry` once more than that allows."""
