"""`otel_kit.job`: any function as a job, whoever calls it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from datetime import timedelta, tzinfo
from typing import Any, Final, TypeVar, cast, overload

from otel_kit.guard import guard
from otel_kit.jobs.body import Body
from otel_kit.jobs.model import Job, Outcome, Trigger
from otel_kit.jobs.propagation import trigger_of_current_work
from otel_kit.jobs.recorder import current_run, get_recorder
from otel_kit.jobs.schedule import Cron, Interval, default_grace, parse

F = TypeVar("F", bound=Callable[..., Any])

_DECLARATION: Final = "__otel_kit_job__"
_LONGEST_NAME: Final = 200
#: Seconds: a year, beyond which a limit is a mistake in the unit.
_LONGEST: Final = 366 * 86_400.0


@dataclass(frozen=True, slots=True, eq=False)
class Declaration:
    """What a decorated function is declared to be. There is one for each function.

    Attributes:
        name: The job's name.
        names: All that a framework's own run of this function may be called, if it is not named by hand.
        max_runtime: Seconds that a run may take, if somebody has said.
        grace: Seconds after a scheduled start within which a success is due, if somebody has said.
    """

    name: str
    names: frozenset[str]
    schedule: Cron | Interval | None
    max_runtime: float | None
    grace: float | None
    expected: tuple[type[BaseException], ...]
    recoverable: bool

    @property
    def trigger(self) -> Trigger:
        """What calls it, as far as its declaration tells."""
        if self.schedule is None:
            return Trigger.MANUAL
        return Trigger.CRON if isinstance(self.schedule, Cron) else Trigger.SCHEDULE


_declared: dict[str, Declaration] = {}
_announced = False


def declaration(function: object) -> Declaration | None:
    """What a function was declared to be by `job`; None where it was not decorated. Looks through partials and methods.

    An integration that runs this function as its own framework's job may ask for it: a run of the same name keeps the
    function from beginning a second one, and expected errors and the longest runtime are told here.
    """
    while isinstance(function, functools.partial):
        function = function.func
    found = getattr(function, _DECLARATION, None)  # decorators on top of ours take it along, as functools.wraps does
    return found if isinstance(found, Declaration) else None


def announce() -> None:
    """Report what every decorated function is declared to be: how long it may take, by when it is due, that it has not run.

    Called once telemetry has started. Functions that are decorated later are announced there and then.
    """
    global _announced
    _announced = True
    for each in list(_declared.values()):
        _announce(each)


def _announce(declared: Declaration) -> None:
    with guard("announcing a job"):
        tally = get_recorder().tally
        tally.expect(declared.name)
        if declared.max_runtime is not None:
            tally.limit(declared.name, declared.max_runtime)
        if declared.schedule is not None:
            grace = declared.grace
            if grace is None:
                grace = default_grace(declared.schedule, declared.max_runtime, time.time())
            tally.schedule(declared.name, declared.schedule.next_run, grace)


@overload
def job(function: F, /) -> F: ...


@overload
def job(
    name: str | None = None,
    /,
    *,
    schedule: str | float | timedelta | None = None,
    timezone: str | tzinfo | None = None,
    max_runtime: float | timedelta | None = None,
    grace: float | timedelta | None = None,
    expected: type[BaseException] | tuple[type[BaseException], ...] = (),
    recoverable: bool = False,
) -> Callable[[F], F]: ...


def job(
    name: Any = None,
    /,
    *,
    schedule: str | float | timedelta | None = None,
    timezone: str | tzinfo | None = None,
    max_runtime: float | timedelta | None = None,
    grace: float | timedelta | None = None,
    expected: type[BaseException] | tuple[type[BaseException], ...] = (),
    recoverable: bool = False,
) -> Any:
    """Make every call of a function a run of a job: a span while its body runs, metrics, log events, a deadline.

    Works on functions, coroutine functions, generators, asynchronous generators and methods, and leaves what they return,
    raise and look like as it is. Inside a run of the same job, a framework's or its own, a call adds nothing; inside
    another job's it is a job of its own, as a child of that one's span.

    Args:
        name: The job's name, one of a bounded set; left out, the function's own (``module.function``).
        schedule: When somebody (crontab, systemd, a scheduler) is to call it: a cron expression, seconds or a timedelta. A
            success that does not come in time is what `job.deadline.time` tells.
        timezone: Of a cron expression, a name of the IANA database or ``local``; left out: `OTEL_KIT_TIMEZONE`, else the
            host's.
        max_runtime: Seconds (or a timedelta) after which a run counts as stuck. It is not cut off.
        grace: Seconds (or a timedelta) from a scheduled start within which a success is due, the run's own time included;
            left out, see `otel_kit.jobs.schedule.default_grace`.
        expected: Exceptions that may happen: such a run failed, but is no error to look at.
        recoverable: Whether the job may be run again after its process has died.

    Raises:
        ValueError: An argument has a value that it does not take; the message names both.
        TypeError: An argument is of another kind, or what is decorated is no function.
    """
    if name is not None and not isinstance(name, str):
        return _decorate(name, _declare(name, None, None, None, None, (), recoverable=False))
    if isinstance(name, str) and not 0 < len(name.strip()) <= _LONGEST_NAME:
        raise ValueError(f"job name {name[:80]!r} is not accepted; accepted: 1 to {_LONGEST_NAME} characters")
    if timezone is not None and schedule is None:
        raise ValueError(f"timezone={timezone!r} says nothing without a schedule; give schedule= too")
    if grace is not None and schedule is None:
        raise ValueError(f"grace={grace!r} says nothing without a schedule; give schedule= too")
    parsed = None if schedule is None else parse(schedule, timezone)
    longest, late = _seconds("max_runtime", max_runtime), _seconds("grace", grace)
    kinds = _kinds(expected)
    if not isinstance(recoverable, bool):
        raise TypeError(f"recoverable={recoverable!r} is not accepted; accepted: True or False")

    def decorate(function: F) -> F:
        return cast(
            "F", _decorate(function, _declare(function, name, parsed, longest, late, kinds, recoverable=recoverable))
        )

    return decorate


def _seconds(argument: str, given: Any) -> float | None:
    if given is None:
        return None
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not (0 < seconds <= _LONGEST) or math.isnan(seconds):
        raise ValueError(
            f"{argument}={given!r} is not accepted; accepted: seconds or a timedelta, more than 0 and at most 366 days"
        )
    return float(seconds)


def _kinds(given: Any) -> tuple[type[BaseException], ...]:
    kinds = given if isinstance(given, tuple) else (given,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError(f"expected={given!r} is not accepted; accepted: an exception class or a tuple of them")
    return kinds


def _declare(
    function: Any,
    name: str | None,
    schedule: Cron | Interval | None,
    max_runtime: float | None,
    grace: float | None,
    expected: tuple[type[BaseException], ...],
    *,
    recoverable: bool,
) -> Declaration:
    plain = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
    if isinstance(plain, type) or not callable(plain):
        raise TypeError(f"otel_kit.job decorates functions; it was given {function!r}")
    if name is None:
        names = _names(plain)
        chosen = names[0]
    else:
        names, chosen = [name.strip()], name.strip()
    return Declaration(chosen, frozenset(names), schedule, max_runtime, grace, expected, recoverable)


def name_of(function: Any) -> str:
    """What a function is called where nobody has given a name: ``module.function``, bounded by the code."""
    return _names(function)[0]


def _names(function: Any) -> list[str]:
    """First the name, then the others that frameworks give to a run of this function unless they are told one."""
    while isinstance(function, functools.partial):
        function = function.func
    simple = getattr(function, "__name__", type(function).__name__)
    qualified = getattr(function, "__qualname__", type(function).__qualname__).rpartition("<locals>.")[2]
    module = getattr(function, "__module__", None) or ""
    if module in ("__main__", "__mp_main__"):
        # Which file it is that runs is the service's name to tell; of `python -m` the module is known.
        spec = getattr(sys.modules.get(module), "__spec__", None)
        module = spec.name.removesuffix(".__main__") if spec is not None else ""
    full = f"{module}.{qualified}" if module else qualified
    return [full[:_LONGEST_NAME], qualified, simple, f"{module}.{simple}", f"__main__.{qualified}"]


def _decorate(function: Any, declared: Declaration) -> Any:
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(_decorate(function.__func__, declared))
    wrapper = _wrap(function, declared)
    _keep_signature(wrapper, function)
    setattr(wrapper, _DECLARATION, declared)
    _declared[declared.name] = declared
    if _announced:
        _announce(declared)
    return wrapper


def _keep_signature(wrapper: Any, function: Any) -> None:
    # Celery looks at it without looking behind the wrapper, and would no longer refuse wrong arguments at once.
    options: dict[str, Any] = {}
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        options["annotation_format"] = Format.FORWARDREF
    with contextlib.suppress(ValueError, TypeError, NameError):  # of a builtin nobody knows it
        wrapper.__signature__ = inspect.signature(function, **options)


def _wrap(function: Any, declared: Declaration) -> Any:
    # Of an object that can be called it is the method that tells what kind it is.
    kind = function if inspect.isroutine(function) or isinstance(function, functools.partial) else function.__call__
    if inspect.isasyncgenfunction(kind):
        return _wrap_asynchronous_generator(function, declared)
    if inspect.isgeneratorfunction(kind):
        return _wrap_generator(function, declared)
    if inspect.iscoroutinefunction(kind):

        @functools.wraps(function)
        async def wait(*args: Any, **kwargs: Any) -> Any:
            with _begin(declared):
                return await function(*args, **kwargs)

        return wait

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _begin(declared):
            return function(*args, **kwargs)

    return call


def _wrap_generator(function: Any, declared: Declaration) -> Any:
    @functools.wraps(function)
    def items(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        made = function(*args, **kwargs)
        body = _begin(declared)
        value, thrown = None, None
        try:
            while True:
                with body.resumed():
                    try:
                        item = made.send(value) if thrown is None else made.throw(thrown)
                    except StopIteration as stop:
                        result = stop.value
                        break
                value, thrown = None, None
                try:
                    value = yield item
                except GeneratorExit:
                    with body.resumed():
                        made.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - the function's to handle
                    thrown = error
        except BaseException as error:
            thrown = None  # it would hold this frame, and this frame it
            # One who takes no more items has had enough of them.
            body.end(error, closed=Outcome.SUCCESS)
            raise
        body.end()
        return result

    return items


def _wrap_asynchronous_generator(function: Any, declared: Declaration) -> Any:
    @functools.wraps(function)
    async def items(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        made = function(*args, **kwargs)
        body = _begin(declared)
        value, thrown = None, None
        try:
            while True:
                with body.resumed():
                    try:
                        item = await (made.asend(value) if thrown is None else made.athrow(thrown))
                    except StopAsyncIteration:
                        break
                value, thrown = None, None
                try:
                    value = yield item
                except GeneratorExit:
                    with body.resumed():
                        await made.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - the function's to handle
                    thrown = error
        except BaseException as error:
            thrown = None
            body.end(error, closed=Outcome.SUCCESS)
            raise
        body.end()

    return items


def _begin(declared: Declaration) -> Body:
    with guard("beginning a job"):
        run = current_run()
        # A framework may call it otherwise than we do, as long as nobody has named it by hand.
        if run is None or run.job.name not in (declared.names if run.job.system else (declared.name,)):
            return Body(_job(declared, inside=run is not None), declared.expected)
    return Body(None)


def _job(declared: Declaration, *, inside: bool) -> Job:
    trigger = trigger_of_current_work()
    if trigger is Trigger.MANUAL and not inside:
        trigger = declared.trigger
    return Job(
        declared.name,
        uuid.uuid4().hex,
        trigger=trigger,
        max_runtime=declared.max_runtime,
        recoverable=declared.recoverable,
    )
