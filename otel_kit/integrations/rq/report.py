"""What a work horse tells its worker of the run: a pipe between the two, since the worker's tally must not ask Redis.

The horse writes once, when everything it has to say is safe. What is not in the pipe when the horse is gone, it never said.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from opentelemetry.trace import SpanContext, TraceFlags

from otel_kit.jobs.model import Outcome

#: What a horse that is spawned and not forked finds the pipe and its span's ids by.
VARIABLE: Final = "OTEL_KIT_RQ_RUN"
#: Classes of an error's ancestry that are told, and characters of each name: a report fits into a pipe at once (PIPE_BUF).
_ANCESTRY: Final = 12
_LONGEST_NAME: Final = 120


@dataclass(frozen=True, slots=True)
class Report:
    """How a run ended.

    Attributes:
        duration: Seconds it took.
        error: What was raised, or a stand-in of the same class name where the original stayed in another process.
    """

    outcome: Outcome
    duration: float
    error: BaseException | None = None

    def encode(self) -> bytes:
        """The report as a line, at most a pipe's worth."""
        kinds = [] if self.error is None else type(self.error).__mro__[:-2][:_ANCESTRY]
        ancestry = [[kind.__module__[:_LONGEST_NAME], kind.__qualname__[:_LONGEST_NAME]] for kind in kinds]
        return json.dumps([self.outcome.value, self.duration, ancestry]).encode()

    @classmethod
    def decode(cls, line: bytes) -> Self | None:
        """None where it is no report."""
        try:
            outcome, duration, ancestry = json.loads(line)
            error = _stand_in(tuple((str(module), str(name)) for module, name in ancestry))() if ancestry else None
            return cls(Outcome(outcome), float(duration), error)
        except (ValueError, TypeError):
            return None


@lru_cache(maxsize=256)
def _stand_in(ancestry: tuple[tuple[str, str], ...]) -> type[Exception]:
    """A class of the same name and the same ancestors' names, from which `error.type` and the category are made."""
    made: type[Exception] = Exception
    for module, name in reversed(ancestry):
        made = type(name, (made,), {"__module__": module, "__qualname__": name})
    return made


class Line:
    """The pipe. The worker makes it before each run; a forked horse inherits it, a spawned one finds it by its number."""

    def __init__(self, reading: int | None, writing: int) -> None:
        self._reading = reading
        self._writing = writing

    @classmethod
    def open(cls) -> Self:
        """In the worker."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        return cls(reading, writing)

    @classmethod
    def inherited(cls) -> tuple[Self | None, SpanContext | None]:
        """In a spawned horse, with the ids of the run's span; None and None in any other process."""
        told = os.environ.pop(VARIABLE, "")
        try:
            descriptor, trace_id, span_id, flags = told.split(":")
            number = int(descriptor)
            if not stat.S_ISFIFO(os.fstat(number).st_mode):
                return None, None
            os.set_inheritable(number, False)
            ids = int(trace_id, 16), int(span_id, 16)
            context = SpanContext(*ids, is_remote=True, trace_flags=TraceFlags(int(flags)))
        except (ValueError, OSError):
            return None, None
        return cls(None, number), context

    @contextmanager
    def passed_on(self, context: SpanContext) -> Iterator[None]:
        """While a horse is spawned: the pipe stays open in it, and it is told the ids of the run's span."""
        os.set_inheritable(self._writing, True)
        flags = int(context.trace_flags)
        os.environ[VARIABLE] = f"{self._writing}:{context.trace_id:032x}:{context.span_id:016x}:{flags}"
        try:
            yield
        finally:
            os.environ.pop(VARIABLE, None)
            os.set_inheritable(self._writing, False)

    def send(self, report: Report) -> None:
        """Tell the worker; once."""
        os.write(self._writing, report.encode())

    def receive(self) -> Report | None:
        """What the horse has told, if anything. Does not wait."""
        if self._reading is None:
            return None
        try:
            line = os.read(self._reading, 65_536)
        except BlockingIOError:
            return None
        return Report.decode(line)

    def close(self) -> None:
        """Close both ends."""
        for descriptor in (self._reading, self._writing):
            if descriptor is not None:
                os.close(descriptor)
