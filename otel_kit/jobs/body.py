"""A run around a body of code of this very process: decorated functions, schedulers."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from contextvars import Token
from types import TracebackType

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_kit.guard import guard
from otel_kit.jobs import errors
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import Run, get_recorder


class Body:
    """One run. Its span is current in the body of code and nowhere else, also where that is left and entered again.

    Nothing of it raises. The start and the end of the run happen in a copy of the context of its own: a generator may be
    ended from another thread or task than it was begun in, where what was put in force cannot be taken back.

    Args:
        job: What runs; None for a body that is part of a run already: nothing happens then.
        expected: Errors that it declares as ones that may happen.
        alone: Whether it belongs to nothing that happens to be current: a scheduler's thread or loop goes on in the context
            of whoever spoke to it last.
        counted: Whether this process counts it; not where another one does, that outlives it.
    """

    def __init__(
        self,
        job: Job | None,
        expected: tuple[type[BaseException], ...] = (),
        *,
        alone: bool = False,
        counted: bool = True,
    ) -> None:
        self._expected = expected
        self._inside: Context | None = None
        self._token: Token[Context] | None = None
        self.run: Run | None = None
        if job is not None:
            with guard("starting a run"):
                self._context = contextvars.copy_context()
                self._context.run(self._start, job, alone, counted)

    def _start(self, job: Job, alone: bool, counted: bool) -> None:
        if alone:
            otel_context.attach(Context())
        self.run = get_recorder().start(job, counted=counted)
        self._inside = otel_context.get_current()

    def enter(self) -> Token[Context] | None:
        """Put the run in force here; pass what comes back to `leave`."""
        return otel_context.attach(self._inside) if self._inside is not None else None

    def leave(self, token: Token[Context] | None) -> None:
        """Put back what was in force before; what the body has put in force on top waits for the next `enter`."""
        if token is not None:
            self._inside = otel_context.get_current()
            # A generator or coroutine that nobody wanted any more is closed in whatever context that happens to be noticed.
            with contextlib.suppress(ValueError):
                token.var.reset(token)

    @contextlib.contextmanager
    def resumed(self) -> Iterator[None]:
        """From `enter` to `leave`: the body goes on, until it waits for somebody outside of it."""
        token = self.enter()
        try:
            yield
        finally:
            self.leave(token)

    def end(self, error: BaseException | None = None, *, closed: Outcome = Outcome.REVOKED) -> None:
        """The body has come to its end, or raised ``error``; ``closed`` is what GeneratorExit means."""
        if self.run is None:
            return
        outcome = _outcome(error, closed)
        with guard("ending a run"):
            said = error if outcome in (Outcome.FAILURE, Outcome.REVOKED) else None
            self._context.run(self.run.finish, outcome, said, expected=isinstance(error, self._expected))

    def __enter__(self) -> None:
        self._token = self.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(self._token)
        self.end(error)


def _outcome(error: BaseException | None, closed: Outcome) -> Outcome:
    if error is None:
        return Outcome.SUCCESS
    if isinstance(error, GeneratorExit):
        return closed
    if isinstance(error, SystemExit):
        return Outcome.SUCCESS if error.code in (None, 0) else Outcome.FAILURE
    if isinstance(error, Exception) or errors.category(error) == "timeout":
        return Outcome.FAILURE
    # Ctrl-C, a cancelled task, a killed greenlet: somebody wanted it to end.
    return Outcome.REVOKED
