"""The worker: a process with threads, which runs its messages and outlives them, so it counts them, too.

Hooks stand around all of a broker's middleware, not among it: a run starts when none of them has skipped the message, and
ends when all of them have dealt with its end, whatever their order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from otel_kit.guard import guard
from otel_kit.integrations.dramatiq import producer, queues
from otel_kit.integrations.dramatiq.messages import (
    DUE,
    OPTION,
    expects,
    headers_of,
    job_of,
    max_runtime,
    queue_of,
    seconds,
    system,
)  # fmt: skip
from otel_kit.jobs.model import Job, Outcome
from otel_kit.jobs.recorder import Run, current_run, get_recorder
from otel_kit.jobs.schedule import default_grace, parse

#: On a message of this process: its run, or None where that has ended or will never be.
_RUN: Final = "_otel_kit_run"
#: On a message that was skipped: the module whose middleware did it.
_SKIPPED_BY: Final = "_otel_kit_skipped_by"

#: What it means when one of these skips a message.
_SKIPPERS: Final = {
    "dramatiq.middleware.age_limit": Outcome.EXPIRED,
    "dramatiq_abort.middleware": Outcome.REVOKED,
    "periodiq": Outcome.MISSED,
}
#: Interrupts by which somebody wants an end of the run, by module and name.
_ABORTS: Final = frozenset({("dramatiq_abort.abort_manager", "Abort")})


def emit_before(wrapped: Callable[..., Any], broker: Any, args: Any, kwargs: Any) -> Any:
    signal, subject = args[0], args[1] if len(args) > 1 else None
    if signal == "process_message":
        return _before_process(wrapped, broker, args, kwargs)
    if signal == "delay_message":
        with guard("dramatiq: a delayed message"):
            _keep_due_time(subject)
    return wrapped(*args, **kwargs)


def emit_after(wrapped: Callable[..., Any], broker: Any, args: Any, kwargs: Any) -> Any:
    signal, subject = args[0], args[1] if len(args) > 1 else None
    if signal == "process_message":
        return _after_process(wrapped, broker, args, kwargs)
    result = wrapped(*args, **kwargs)
    if signal == "skip_message":
        with guard("dramatiq: a skipped message"):
            _skipped(broker, subject)
    elif signal == "nack":
        with guard("dramatiq: a rejected message"):
            _rejected(broker, subject)
    elif signal == "worker_boot":
        with guard("dramatiq: a worker is ready"):
            _ready(broker, subject)
    return result


def _before_process(wrapped: Callable[..., Any], broker: Any, args: Any, kwargs: Any) -> Any:
    message = args[1]
    job: Job | None = None
    with guard("dramatiq: a delivery"):
        job = job_of(broker, message)
        get_recorder().tally.received(job)
    try:
        result = wrapped(*args, **kwargs)
    except Exception as error:
        vars(message)[_SKIPPED_BY] = _module_of(error)
        raise
    if job is not None and not message.failed:
        with guard("dramatiq: a start"):
            vars(message)[_RUN] = get_recorder().start(job, counted=True)
    return result


def _after_process(wrapped: Callable[..., Any], broker: Any, args: Any, kwargs: Any) -> Any:
    message, error = args[1], kwargs.get("exception")
    with producer.ending(message.message_id) as watched:
        try:
            result = wrapped(*args, **kwargs)
        except BaseException:
            # A late interrupt: Dramatiq comes again with it as the error. If it has one already, it will not.
            if error is not None:
                _end(broker, message, Outcome.FAILURE, error)
            raise
    if error is None:
        # Not called at all where a middleware has failed the message before.
        outcome = Outcome.REJECTED if message.failed else Outcome.SUCCESS
    elif watched.sent_again and not message.failed:
        outcome = Outcome.RETRY
    else:
        aborted = (type(error).__module__, type(error).__name__) in _ABORTS
        outcome = Outcome.REVOKED if aborted else Outcome.FAILURE
    _end(broker, message, outcome, error)
    return result


def _end(broker: Any, message: Any, outcome: Outcome, error: BaseException | None) -> None:
    with guard("dramatiq: an end"):
        known = vars(message).get(_RUN, ...)
        if known is None:
            return  # an interrupt that came after the end
        run = known if isinstance(known, Run) else _interrupted_start(message)
        vars(message)[_RUN] = None
        if run is None and outcome is Outcome.REJECTED:
            get_recorder().never_ran(job_of(broker, message), outcome)
            return
        if run is None:
            run = get_recorder().start(job_of(broker, message), counted=True)
        expected = error is not None and outcome is Outcome.FAILURE and expects(broker, message, error)
        run.finish(outcome, error, expected=expected)


def _interrupted_start(message: Any) -> Run | None:
    # An interrupt may strike between the start and the note of it.
    run = current_run()
    return run if run is not None and run.job.id == message.message_id else None


def _skipped(broker: Any, message: Any) -> None:
    outcome = _SKIPPERS.get(vars(message).pop(_SKIPPED_BY, ""))
    if outcome is None:
        outcome = Outcome.REJECTED if message.failed else Outcome.SKIPPED
    run = vars(message).get(_RUN)
    vars(message)[_RUN] = None
    if isinstance(run, Run):  # the actor itself has raised it
        run.finish(outcome)
    else:
        get_recorder().never_ran(job_of(broker, message), outcome)


def _rejected(broker: Any, message: Any) -> None:
    """A message goes to the dead letters. If no thread has ever had it, there is no actor of its name here."""
    if _RUN in vars(message):
        return
    vars(message)[_RUN] = None
    job = job_of(broker, message)
    get_recorder().tally.received(job)
    get_recorder().never_ran(job, Outcome.REJECTED, getattr(message, "_exception", None) or _missing(broker, message))


def _missing(broker: Any, message: Any) -> Exception | None:
    try:
        broker.get_actor(message.actor_name)
    except Exception as error:  # noqa: BLE001 - what 1.x has raised and does not hand on
        return error
    return None


def _module_of(error: BaseException) -> str:
    """The module that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""


def _keep_due_time(message: Any) -> None:
    due = seconds(message.options.get("eta"))
    if due is not None:
        message.options[OPTION] = {**headers_of(message.options), DUE: due}


def handle_delayed_messages(wrapped: Callable[..., Any], _thread: Any, args: Any, kwargs: Any) -> Any:
    """A consumer thread calls it in every round of its loop, every second at least."""
    with guard("dramatiq: a sign of life"):
        get_recorder().tally.beat("loop")
    with producer.forwarding():
        return wrapped(*args, **kwargs)


def decode(wrapped: Callable[..., Any], _message_class: Any, args: Any, kwargs: Any) -> Any:
    """A payload that a consumer cannot read is in nobody's hands: no message, so none of the hooks above."""
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        consumer: Any = threading.current_thread()
        if hasattr(consumer, "queue_name") and hasattr(consumer, "broker"):
            with guard("dramatiq: a payload that cannot be read"):
                job = Job("unknown", "", queue_of(consumer.queue_name), system(consumer.broker))
                get_recorder().tally.received(job)
                get_recorder().never_ran(job, Outcome.REJECTED, error)
        raise


def _ready(broker: Any, worker: Any) -> None:
    names = sorted({queue_of(name) for name in worker.consumers})
    tally = get_recorder().tally
    tally.pool(names, lambda: sum(thread.is_alive() for thread in worker.workers))
    tally.beat("loop")
    for actor in list(broker.actors.values()):
        if actor.queue_name not in names:
            continue
        tally.expect(actor.actor_name, actor.queue_name)
        limit = max_runtime(broker, actor, {})
        if limit is not None:
            tally.limit(actor.actor_name, limit)
        if actor.options.get("periodic") is not None:
            with guard("dramatiq: a schedule of periodiq's"):
                _schedule(actor)
    queues.watch(broker, names)


def _schedule(actor: Any) -> None:
    wanted = parse(str(actor.options["periodic"]), "local")
    grace = default_grace(wanted, seconds(actor.options.get("time_limit")), time.time())
    get_recorder().tally.schedule(actor.actor_name, wanted.next_run, grace)
