"""What one attempt leaves for the next, which another worker may take: a link to it, and when it let go.

arq keeps nothing of that kind, and does not move the score of a job that is to run again at once. One key of ours for each
retry holds it, until the next attempt begins.
"""

from __future__ import annotations

from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanContext

from otel_kit import catalogue

_PREFIX: Final = "otel-kit:arq:attempt:"
#: Seconds beyond the wanted delay after which nobody needs it any more.
_KEPT: Final = 3600.0


async def leave(pool: Any, job_id: str, attempt: SpanContext, ended_at: float, delay: float) -> None:
    """Say that ``attempt`` ended at ``ended_at`` (unix seconds), and the next is wanted ``delay`` seconds on. Fails silently."""
    link = f"00-{attempt.trace_id:032x}-{attempt.span_id:016x}-{attempt.trace_flags:02x}"
    try:
        with suppress_instrumentation():
            await pool.set(_PREFIX + job_id, f"{link} {ended_at!r}", px=int((max(0.0, delay) + _KEPT) * 1000))
    except Exception:  # noqa: BLE001 - arq's own commands follow on the same connection, and tell the application
        return


async def take(pool: Any, job_id: str) -> tuple[dict[str, str], float | None]:
    """What the attempt before has left: headers to add to the job's own, and when it ended (unix seconds)."""
    try:
        with suppress_instrumentation():
            async with pool.pipeline(transaction=True) as pipe:
                pipe.get(_PREFIX + job_id)
                pipe.delete(_PREFIX + job_id)
                left, _ = await pipe.execute()
        text = left.decode() if isinstance(left, bytes) else left
        link, ended_at = text.split()
        return {catalogue.PREVIOUS_ATTEMPT_HEADER: link}, float(ended_at)
    except Exception:  # noqa: BLE001 - nothing there, or nothing that we wrote: the attempt goes on without
        return {}, None
