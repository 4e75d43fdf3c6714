"""What an RQ job says of itself. It comes out of Redis and may say anything.

Our headers travel as one entry of ``job.meta``, which is the only room that RQ gives an application in a job. Beside those
that every framework's carrier has, it holds what RQ does not tell: the job's name without unpickling its arguments, which
attempt it is, and when it was wanted.
"""

from __future__ import annotations

import json
import math
import pickletools
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from otel_kit import catalogue
from otel_kit.jobs.decorator import Declaration, declaration
from otel_kit.jobs.delivery import delivered
from otel_kit.jobs.model import Job

SYSTEM: Final = "redis"
#: The entry of ``job.meta``.
META_KEY: Final = "otel-kit"

NAME_HEADER: Final = catalogue.NAME_HEADER
ATTEMPT_HEADER: Final = catalogue.ATTEMPT_HEADER
#: The wanted start of a job that was put off, unix seconds. RQ itself keeps whole seconds, and only until it is due.
START_AT_HEADER: Final = catalogue.START_AT_HEADER
#: On what would make one endless trace: a batch, a job that repeats itself.
LINKED_HEADER: Final = catalogue.LINKED_HEADER
#: The worker that ran the attempt before. RQ writes a name at each start: another one here means that the job has run since,
#: and was put into its queue again by a process that knows nothing of our headers.
WORKER_HEADER: Final = catalogue.WORKER_HEADER
#: The schedule behind a cron job, so that the worker knows when the next success is due: an expression, or seconds.
SCHEDULE_HEADER: Final = catalogue.SCHEDULE_HEADER

UNKNOWN: Final = "unknown"
#: Characters of a name; one that is longer is no name of a function.
_LONGEST_NAME: Final = 256
#: Opcodes of a pickle that come before its first string.
_FIRST_OPCODES: Final = 16


def headers_of(job: Any) -> dict[str, Any]:
    """Our headers, as they stand in the job's meta."""
    meta = getattr(job, "meta", None)
    headers = meta.get(META_KEY) if isinstance(meta, dict) else None
    return headers if isinstance(headers, dict) else {}


def put_headers(job: Any, headers: dict[str, str]) -> None:
    """Lay our headers into the job's meta; the dictionary that the application passed is not touched."""
    if getattr(job, "_unreadable_meta", None) is not None:
        return  # RQ keeps what it could not read as it is, as long as nobody adds to it
    job.meta = {**(job.meta or {}), META_KEY: headers}


def name_of(job: Any) -> str:
    """The job's name, without unpickling anything: a worker's main process loads neither arguments nor their classes."""
    named = headers_of(job).get(NAME_HEADER)
    if isinstance(named, str) and 0 < len(named) <= _LONGEST_NAME:
        return named
    path = _path_of(job)
    declared = declaration_of(path)
    return declared.name if declared is not None else path or UNKNOWN


def name_of_new(job: Any) -> str:
    """The name of a job that is being published: as it is declared, else the function's path, with its class's for a method."""
    function, instance = getattr(job, "_func_name", None), getattr(job, "_instance", None)
    if not isinstance(function, str):
        return name_of(job)  # it was published before, and comes out of Redis
    kind = type(instance)
    if instance is None or kind is object:  # an instance of object itself says that RQ has not looked yet
        declared = declaration_of(function)
        return declared.name if declared is not None else function
    declared = declaration(getattr(instance, function, None))
    return declared.name if declared is not None else f"{kind.__module__}.{kind.__qualname__}.{function}"


def declaration_of(path: str | None) -> Declaration | None:
    """What the function of this path is declared to be with `otel_kit.job`. Imports nothing: only what is loaded is asked."""
    module, _, name = (path or "").rpartition(".")
    attributes = [name]
    while module and module not in sys.modules:
        module, _, name = module.rpartition(".")
        attributes.insert(0, name)
    found: Any = sys.modules.get(module)
    for each in attributes:
        found = getattr(found, each, None)
    return declaration(found)


def _path_of(job: Any) -> str | None:
    known = getattr(job, "_func_name", None)
    if not isinstance(known, str):
        data = getattr(job, "_data", None)
        known = _first_string(data) if isinstance(data, bytes) else None
    return known if known and len(known) <= _LONGEST_NAME else None


def _first_string(data: bytes) -> str | None:
    """The first element of RQ's tuple of function, instance, arguments and keywords, in JSON or in a pickle."""
    try:
        if data[:1] == b"[":
            found, _end = json.JSONDecoder().raw_decode(data[1 : 4 * _LONGEST_NAME].decode("utf-8", "ignore").lstrip())
            return found if isinstance(found, str) else None
        for number, (opcode, argument, _position) in enumerate(pickletools.genops(data)):
            if "UNICODE" in opcode.name:
                return str(argument)
            if number == _FIRST_OPCODES:
                return None
    except ValueError:  # neither: a serializer of the application's own, or garbage
        return None
    return None


def attempt_of(job: Any) -> int:
    """Which attempt this is. RQ counts those that are left, and those that the job itself asked for."""
    told = headers_of(job).get(ATTEMPT_HEADER)
    try:
        attempt = int(told) if isinstance(told, (str, int)) else 1 + int(job.number_of_retries or 0)
    except (ValueError, TypeError):
        return 1
    return attempt if 0 < attempt < 1_000_000 else 1


def _are_stale(job: Any) -> bool:
    """Whether our headers, of a job that has just been taken from its queue, are those of an attempt that was made already."""
    headers = headers_of(job)
    return WORKER_HEADER in headers and headers[WORKER_HEADER] != (job.worker_name or "")


def unix(when: object) -> float | None:
    """A time of RQ's in unix seconds; it means UTC where it does not say."""
    if not isinstance(when, datetime):
        return None
    return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()


def _longest(job: Any, declared: Declaration | None) -> float | None:
    """Seconds that the job may run: as it is declared, else as RQ lets it; None where that is for ever."""
    from rq import Queue

    if declared is not None and declared.max_runtime is not None:
        return declared.max_runtime
    timeout = job.timeout or Queue.DEFAULT_TIMEOUT
    return float(timeout) if isinstance(timeout, (int, float)) and timeout > 0 else None


def job_of(job: Any, *, taken: bool = False) -> Job:
    """The attempt that a job's headers speak of; ``taken``: it has just been taken from its queue, to be run."""
    headers = headers_of(job)
    start_at, stale = _number(headers.get(START_AT_HEADER)), taken and _are_stale(job)
    # RQ's scheduler moves a delayed job into the queue some time after it was due: it was ready when it was due. What has
    # been waiting for another job, or for a rate limit, was ready when RQ put it into the queue.
    moved = start_at is not None and not getattr(job, "rate_limit_key", None) and not stale
    declared = declaration_of(_path_of(job))
    made = delivered(
        name_of(job),
        job.id,
        job.origin or UNKNOWN,
        SYSTEM,
        headers,
        attempt=attempt_of(job) + stale,
        start_at=start_at,
        enqueued_at=None if moved else unix(job.enqueued_at),
        max_runtime=_longest(job, declared),
        recoverable=declared is not None and declared.recoverable,
    )
    return replace(made, delayed=True) if headers.get(LINKED_HEADER) else made


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, (str, int, float)) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
