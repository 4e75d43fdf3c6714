"""Inside a job: its stages, and how far it is."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import time
from collections.abc import Callable
from contextvars import Token
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast
from weakref import WeakKeyDictionary

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from otel_kit import catalogue
from otel_kit._version import __version__
from otel_kit.guard import guard
from otel_kit.jobs import errors, events, names
from otel_kit.jobs.recorder import Run, current_run, get_recorder
from otel_kit.telemetry.limits import cut
from otel_kit.telemetry.plain import text_of

F = TypeVar("F", bound=Callable[..., Any])

_LONGEST_NAME: Final = 200
#: Characters of what a job says of its progress.
_LONGEST_MESSAGE: Final = 500
#: Seconds between two events of progress.
_PAUSE: Final = 1.0
_tracer = trace.get_tracer("otel_kit.jobs", __version__)


@dataclass(slots=True)
class _Entered:
    span: Span
    token: Token[Context]
    run: Run | None
    clock: float


class step:  # noqa: N801 - reads as the word that it is
    """A stage of a job: a span of its own below the job's, and `job.step.duration`. Outside a job the span alone.

    Works as ``with``, as ``async with`` and as a decorator of functions and coroutine functions. What happens inside goes
    on to the caller; an error marks the span.

    Args:
        name: What the stage is called, one of a bounded set; metrics tell the first 200 apart (`OTEL_KIT_NAME_LIMIT`).

    Raises:
        ValueError: The name is empty or longer than 200 characters.
        TypeError: The name is no text.
    """

    def __init__(self, name: str, /) -> None:
        if not isinstance(name, str):
            raise TypeError(
                f"step name {name!r} is not accepted; accepted: text, and step is called: @otel_kit.step('...')"
            )
        if not 0 < len(name.strip()) <= _LONGEST_NAME:
            raise ValueError(f"step name {name[:80]!r} is not accepted; accepted: 1 to {_LONGEST_NAME} characters")
        self.name = name.strip()
        # One object may be entered again before it is left: recursion, or two tasks that share it.
        self._entered: list[_Entered] = []

    def __enter__(self) -> Self:
        with guard("beginning a step"):
            run = current_run()
            attributes = {catalogue.JOB_STEP: self.name}
            if run is not None:
                attributes |= {**events.named(run.job), catalogue.JOB_ID: run.job.id}
            # Metrics are made of span names: they are as bounded as labels.
            span = _tracer.start_span(names.steps.bounded(self.name), kind=SpanKind.INTERNAL, attributes=attributes)
            token = otel_context.attach(trace.set_span_in_context(span))
            self._entered.append(_Entered(span, token, run, time.monotonic()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        with guard("ending a step"):
            entered = self._leaving()
            if entered is None:
                return
            took = time.monotonic() - entered.clock
            try:
                _describe(entered.span, error)
                if entered.run is not None:
                    get_recorder().tally.step(entered.run.job, self.name, took)
            finally:
                entered.span.end()
                # One that is left in another context than it was entered in has nothing to put back there.
                with contextlib.suppress(ValueError):
                    entered.token.var.reset(entered.token)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace_)

    def __call__(self, function: F, /) -> F:
        """The function with every call of it a stage of this name."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"step decorates functions and coroutine functions; put `with step(...)` inside {function!r}"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wait(*args: Any, **kwargs: Any) -> Any:
                with step(self.name):
                    return await function(*args, **kwargs)

            return cast("F", wait)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with step(self.name):
                return function(*args, **kwargs)

        return cast("F", call)

    def _leaving(self) -> _Entered | None:
        current = trace.get_current_span()
        for place in reversed(range(len(self._entered))):
            if self._entered[place].span is current:
                return self._entered.pop(place)
        return self._entered.pop() if self._entered else None


def _describe(span: Span, error: BaseException | None) -> None:
    # GeneratorExit, a cancelled task, Ctrl-C: it was cut short, which is no fault of the stage.
    if error is None or not isinstance(error, Exception):
        return
    described: dict[str, AttributeValue] = {
        catalogue.ERROR_TYPE: errors.type_name(error),
        catalogue.JOB_ERROR_FINGERPRINT: errors.fingerprint(error),
        catalogue.JOB_ERROR_CATEGORY: errors.category(error),
    }
    span.set_attributes(described)
    span.set_status(Status(StatusCode.ERROR, errors.message(error)))


def progress(fraction: float, message: str = "") -> None:
    """Say how far the job is that this code is part of; outside a job nothing happens. Never raises.

    It may be called as often as the work likes: the log and the span are told at most once a second, and of the first and
    of the end; whoever looks at the jobs that run now sees the latest.

    Args:
        fraction: From 0 to 1; beyond that it is taken for the nearer end.
        message: A few words on it (``"copied 400 of 1000"``).
    """
    with guard("reporting progress"):
        run = current_run()
        share = _share(fraction)
        if run is None or share is None:
            return
        said = cut(text_of(message), _LONGEST_MESSAGE) if message else ""
        if run.entry is not None:
            run.entry.progress, run.entry.message = share, said
        if _due(run, share):
            _tell(run, share, said)


def _share(fraction: object) -> float | None:
    try:
        number = float(fraction)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else min(max(number, 0.0), 1.0)


class _Told:
    """When a run has last told of its progress, and whether of the end."""

    __slots__ = ("at", "ended")

    def __init__(self) -> None:
        self.at = -math.inf
        self.ended = False


_told: WeakKeyDictionary[Run, _Told] = WeakKeyDictionary()


def _due(run: Run, share: float) -> bool:
    told = _told.setdefault(run, _Told())
    now = time.monotonic()
    if told.ended or (share < 1 and now - told.at < _PAUSE):
        return False
    told.at, told.ended = now, share >= 1
    return True


def _tell(run: Run, share: float, said: str) -> None:
    attributes: dict[str, AttributeValue] = {catalogue.JOB_PROGRESS_FRACTION: share}
    if said:
        attributes[catalogue.JOB_PROGRESS_MESSAGE] = said
    run.add_event(catalogue.JOB_PROGRESS, attributes)
    sentence = f"Job {run.job.name} is at {share:.0%}" + (f": {said}" if said else "")
    get_recorder().emit(catalogue.JOB_PROGRESS, sentence, run.job, attributes)
