"""Celery: who publishes, who runs, how it ended.

Three places. The *producer*: `Celery.send_task`, through which every publish goes, opens a span at the
``before_task_publish`` signal (only there the queue is known) and closes it whatever happens. The *child* that does the
work: ``task_prerun`` to ``task_postrun``. The *main process* of the worker: its `Request` objects see the end of every run,
also of one whose child was killed, and count it exactly once for every kind of pool.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection, MutableMapping
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation, unwrap

from otel_kit import catalogue
from otel_kit.guard import guard
from otel_kit.integrations.takeover import Takeover
from otel_kit.jobs import propagation
from otel_kit.jobs.model import Job, Outcome, Trigger
from otel_kit.jobs.recorder import Publication, Run, get_recorder
from otel_kit.lifecycle import lifecycle
from otel_kit.telemetry import logs

_SYSTEMS = {
    "redis": "redis", "rediss": "redis", "sentinel": "redis", "amqp": "rabbitmq", "amqps": "rabbitmq", "pyamqp": "rabbitmq",
    "sqs": "aws_sqs", "sqla": "sql", "kafka": "kafka", "confluentkafka": "kafka", "gcpubsub": "gcp_pubsub",
}  # fmt: skip

#: Longer in the queue, and the header is not to be believed (seconds).
_LONGEST_WAIT = 30 * 86_400.0
_TRIGGERS = {trigger.value: trigger for trigger in Trigger}

_trigger: ContextVar[Trigger | None] = ContextVar("otel_kit_celery_trigger", default=None)


@dataclass(slots=True)
class _Publishing:
    """One call of send_task; the span opens when the signal tells the queue."""

    app: Any
    stack: ExitStack = field(default_factory=ExitStack)
    publication: Publication | None = None


_publishing: ContextVar[_Publishing | None] = ContextVar("otel_kit_celery_publishing", default=None)

#: Celery's states at the end of a run; any other means that it was cut off.
_OUTCOMES = {
    "SUCCESS": Outcome.SUCCESS,
    "IGNORED": Outcome.SUCCESS,
    "FAILURE": Outcome.FAILURE,
    "RETRY": Outcome.RETRY,
    "REJECTED": Outcome.REJECTED,
}

# Runs of this process by task id: signals know nothing else of each other.
_runs: dict[str, Run] = {}
_errors: dict[str, BaseException] = {}


@functools.lru_cache(maxsize=64)
def _system_of(broker_url: str) -> str:
    scheme = urlsplit(broker_url.split(";")[0]).scheme.split("+")[0]
    return _SYSTEMS.get(scheme, scheme or "unknown")


def _system(app: Any) -> str:
    url = app.conf.broker_write_url or app.conf.broker_url or "amqp://"
    return _system_of(url if isinstance(url, str) else str(url[0]))


def _when(text: object) -> float | None:
    if isinstance(text, datetime):
        return text.timestamp()
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _queue(app: Any, delivery: Any, headers: Any) -> str:
    """The queue's name as its producer has it, which a routing key is not for a topic exchange.

    The header is believed only where the name is one of ours: a label made of it must stay bounded.
    """
    delivery = delivery or {}
    known = app.amqp.queues
    named = (headers or {}).get(catalogue.QUEUE_HEADER)
    if isinstance(named, str) and named in known:
        return named
    exchange, routing_key = delivery.get("exchange") or "", delivery.get("routing_key") or "unknown"
    for queue in known.values():
        if queue.routing_key == routing_key and queue.exchange.name == exchange:
            return str(queue.name)
    return str(routing_key)


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, (str, int, float)) else None
    except ValueError:
        return None


def _carrier(headers: Any) -> dict[str, str]:
    wanted = {
        catalogue.ENQUEUED_AT_HEADER, catalogue.TRIGGER_HEADER, catalogue.QUEUE_HEADER,
        catalogue.PREVIOUS_ATTEMPT_HEADER, *propagation.fields(),
    }  # fmt: skip
    return {name: str(headers[name]) for name in wanted if headers and headers.get(name) is not None}


def _job(name: str, task_id: str, queue: str, system: str, headers: Any, retries: int, eta: object) -> Job:
    """A delivered job, from what its message says. Headers come from outside and may be anything."""
    carrier = _carrier(headers)
    enqueued_at = _number(carrier.get(catalogue.ENQUEUED_AT_HEADER))
    start_at = _when(eta)
    # One message with a time of the year 1970, or none at all, would spoil the sum of a histogram until the restart.
    oldest = time.time() - _LONGEST_WAIT
    times = [at for at in (enqueued_at, start_at) if at is not None and oldest < at < math.inf]
    return Job(
        name=name,
        id=task_id,
        queue=queue,
        system=system,
        attempt=retries + 1,
        trigger=_TRIGGERS.get(carrier.get(catalogue.TRIGGER_HEADER, ""), Trigger.MANUAL),
        enqueued_at=enqueued_at,
        ready_at=max(times) if times else None,
        delayed=start_at is not None,
        carrier=carrier,
    )


# --- producer -------------------------------------------------------------------------------------------------------


def _send_task(wrapped: Callable[..., Any], app: Any, args: Any, kwargs: Any) -> Any:
    publishing = _Publishing(app)
    token = _publishing.set(publishing)
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        with guard("celery: a failed publish"):
            if publishing.publication is None:  # it failed before it came to the queue
                name = str(args[0] if args else kwargs.get("name", "unknown"))
                job = Job(name, str(kwargs.get("task_id") or ""), str(kwargs.get("queue") or "unknown"), _system(app))
                publishing.publication = publishing.stack.enter_context(get_recorder().publishing(job))
        # The error is the caller's and is raised below; here it only ends the span.
        with guard("celery: ending a failed publish"):
            _close(publishing, error)
        raise
    else:
        with guard("celery: ending a publish"):
            publishing.stack.close()
        return result
    finally:
        _publishing.reset(token)


def _close(publishing: _Publishing, error: BaseException) -> None:
    try:
        publishing.stack.__exit__(type(error), error, error.__traceback__)
    except BaseException as raised:
        if raised is not error:
            raise


def _before_publish(
    sender: str,
    headers: MutableMapping[str, Any],
    routing_key: str | None = None,
    declare: Any = None,
    **_kwargs: Any,
) -> None:
    publishing = _publishing.get()
    if publishing is None or publishing.publication is not None or not isinstance(headers, MutableMapping):
        return
    with guard("celery: before_task_publish"):
        queue = declare[0].name if declare else (routing_key or "unknown")
        retries = int(headers.get("retries") or 0)
        ready_at = _when(headers.get("eta"))
        job = Job(
            name=sender,
            id=str(headers.get("id", "")),
            queue=queue,
            system=_system(publishing.app),
            attempt=retries + 1,
            ready_at=ready_at,
            delayed=ready_at is not None,
        )
        trigger = Trigger.RETRY if retries else _trigger.get()
        publication = publishing.stack.enter_context(get_recorder().publishing(job, trigger))
        publishing.publication = publication
        before = _runs.get(job.id) if retries else None
        headers[catalogue.QUEUE_HEADER] = queue
        publication.inject(headers, before.context if before is not None else None)


def _beat(wrapped: Callable[..., Any], _scheduler: Any, args: Any, kwargs: Any) -> Any:
    token = _trigger.set(Trigger.SCHEDULE)
    try:
        return wrapped(*args, **kwargs)
    finally:
        _trigger.reset(token)


# --- the process that does the work ---------------------------------------------------------------------------------


def _of_task(task: Any, task_id: str) -> Job:
    request = task.request
    eager = bool(request.is_eager)
    queue = "" if eager else _queue(task.app, request.delivery_info, request.headers)
    return _job(
        task.name,
        task_id,
        queue,
        "" if eager else _system(task.app),
        request.headers,
        request.retries or 0,
        request.eta,
    )


def _prerun(task_id: str, task: Any, **_kwargs: Any) -> None:
    with guard("celery: task_prerun"):
        job = _of_task(task, task_id)
        _runs[task_id] = get_recorder().start(job)
        if task.request.is_eager:
            get_recorder().tally.started(job, time.time())


def _postrun(task_id: str, task: Any, state: str | None = None, **_kwargs: Any) -> None:
    with guard("celery: task_postrun"):
        run = _runs.pop(task_id, None)
        error = _errors.pop(task_id, None)
        if run is None:
            return
        if state not in _OUTCOMES:
            # The process was told to exit in the middle of the run. A pool's main process sees that and records it.
            if lifecycle.forked_at is not None:
                run.abandon()
                return
            error = error or SystemExit("told to exit")
        outcome = _OUTCOMES.get(state or "", Outcome.LOST)
        expected = isinstance(error, tuple(task.throws or ()))
        try:
            run.finish(outcome, error, expected=expected)
        finally:
            if task.request.is_eager:
                get_recorder().tally.finished(run.job, outcome, run.duration, error)


def _failure(task_id: str, exception: BaseException, **_kwargs: Any) -> None:
    if task_id in _runs:
        _errors[task_id] = exception


def _retry(request: Any, reason: Any, **_kwargs: Any) -> None:
    if request.id in _runs:
        cause, original = getattr(reason, "exc", None), reason.__context__
        # Celery keeps the nearest class that can be pickled; what was raised may still be at hand.
        if cause is not None and isinstance(original, type(cause)):
            cause = original
        if isinstance(cause, BaseException):
            _errors[request.id] = cause


def _child_begins(**_kwargs: Any) -> None:
    lifecycle.pooled = True


def _child_ends(**_kwargs: Any) -> None:
    # The child leaves by os._exit: nothing else would send what it still holds (contrib#4916).
    with guard("celery: flushing a pool process"):
        lifecycle.close(lifecycle.timeout)


# --- the worker's main process --------------------------------------------------------------------------------------


def _of_request(request: Any) -> Job:
    headers = request.request_dict
    queue = _queue(request.app, request.delivery_info, headers)
    retries = headers.get("retries")
    return _job(request.name, request.id, queue, _system(request.app), headers, int(retries or 0), headers.get("eta"))


class _Observed:
    """Mixed into Celery's own Request class: reports to the tally what the pool reports to it."""

    _otel_kit_job: Job | None = None
    _otel_kit_started: float | None = None

    def on_accepted(self, pid: int, time_accepted: float) -> Any:
        with guard("celery: a run was accepted"):
            started_at = time.time() - (time.monotonic() - time_accepted)
            self._otel_kit_job = _of_request(self)
            self._otel_kit_started = started_at
            get_recorder().tally.started(self._otel_kit_job, started_at)
        return super().on_accepted(pid, time_accepted)  # type: ignore[misc]

    def on_success(self, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        with guard("celery: a run came back"):
            failed, result, runtime = failed__retval__runtime
            if failed:
                self._otel_kit_end(*_classify(result.exception), runtime)
            else:
                self._otel_kit_end(Outcome.SUCCESS, None, runtime)
        return super().on_success(failed__retval__runtime, **kwargs)  # type: ignore[misc]

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        with guard("celery: a run failed"):
            outcome, error = _classify(exc_info.exception)
            self._otel_kit_died(outcome, error)
            self._otel_kit_end(outcome, error, None)
        return super().on_failure(exc_info, *args, **kwargs)  # type: ignore[misc]

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        if not soft:
            with guard("celery: a run exceeded its time limit"):
                from celery.exceptions import TimeLimitExceeded

                error = TimeLimitExceeded(timeout)
                self._otel_kit_died(Outcome.LOST, error)
                self._otel_kit_end(Outcome.LOST, error, None)
        return super().on_timeout(soft, timeout)  # type: ignore[misc]

    def _otel_kit_died(self, outcome: Outcome, error: BaseException | None) -> None:
        if self._otel_kit_job is not None and error is not None and outcome in (Outcome.LOST, Outcome.REVOKED):
            get_recorder().died(self._otel_kit_job, outcome, self._otel_kit_started, error)

    def _otel_kit_end(self, outcome: Outcome, error: BaseException | None, runtime: float | None) -> None:
        job, started_at = self._otel_kit_job, self._otel_kit_started
        if job is None or started_at is None:
            return  # ended already, or never accepted
        self._otel_kit_job = None
        duration = runtime if runtime is not None else time.time() - started_at
        get_recorder().tally.finished(job, outcome, duration, error)


def _classify(error: Any) -> tuple[Outcome, BaseException | None]:
    """How it ended, and what went wrong; `Ignore` and `Reject` are what a task says, not what befell it."""
    from billiard.einfo import ExceptionWithTraceback
    from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
    from celery.exceptions import Ignore, Reject, Retry

    if isinstance(error, ExceptionWithTraceback):
        error = error.exc
    if isinstance(error, Retry):
        return Outcome.RETRY, error.exc if isinstance(error.exc, BaseException) else error
    if isinstance(error, (WorkerLostError, TimeLimitExceeded, SystemExit, KeyboardInterrupt)):
        return Outcome.LOST, error
    if isinstance(error, Terminated):
        return Outcome.REVOKED, error
    if isinstance(error, Reject):
        return Outcome.REJECTED, None
    if isinstance(error, Ignore):
        return Outcome.SUCCESS, None
    return Outcome.FAILURE, error


def _create_request_cls(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
    made = wrapped(*args, **kwargs)
    return type("Request", (_Observed, made), {})


def _received(request: Any, **_kwargs: Any) -> None:
    with guard("celery: task_received"):
        get_recorder().tally.received(_of_request(request))


def _revoked(sender: Any, request: Any, terminated: bool = False, expired: bool = False, **_kwargs: Any) -> None:
    # A run that is terminated had started; its end is seen by on_failure.
    if terminated:
        return
    with guard("celery: task_revoked"):
        queue = _queue(sender.app, request.delivery_info, request.headers)
        job = _job(
            sender.name, request.id, queue, _system(sender.app), request.headers, request.retries or 0, request.eta
        )
        outcome = Outcome.EXPIRED if expired else Outcome.REVOKED
        get_recorder().tally.never_ran(job, outcome)
        get_recorder().never_ran(job, outcome)


def _worker_ready(sender: Any, **_kwargs: Any) -> None:
    with guard("celery: worker_ready"):
        app = sender.app
        consumed = set(app.amqp.queues.consume_from)
        for name in app.tasks:
            if name.startswith("celery."):
                continue
            queue = app.amqp.router.route({}, name).get("queue")
            if queue is not None and queue.name in consumed:
                get_recorder().tally.expect(name, queue.name)


# --- what is noise --------------------------------------------------------------------------------------------------


def _quiet_client(wrapped: Callable[..., Any], _channel: Any, args: Any, kwargs: Any) -> Any:
    """The broker's own Redis traffic (polling, acknowledging, restoring) makes no spans: send and process tell it."""
    made = wrapped(*args, **kwargs)
    if not isinstance(made, type):
        return functools.partial(_silenced(made.func), *made.args, **made.keywords)
    return _silenced(made)


@functools.lru_cache(maxsize=8)
def _silenced(client: Any) -> Any:
    def execute_command(self: Any, *args: Any, **options: Any) -> Any:
        with suppress_instrumentation():
            return client.execute_command(self, *args, **options)

    def pipeline(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = client.pipeline(self, *args, **kwargs)
        run = made.execute

        def execute(*run_args: Any, **run_kwargs: Any) -> Any:
            with suppress_instrumentation():
                return run(*run_args, **run_kwargs)

        made.execute = execute
        return made

    return type(client.__name__, (client,), {"execute_command": execute_command, "pipeline": pipeline})


class CeleryInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments Celery: producers, beat and workers of every pool. Stands in for upstream's."""

    _takeover = Takeover("opentelemetry.instrumentation.celery", "CeleryInstrumentor")

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("celery >= 5.4, < 6",)

    def _signals(self) -> list[tuple[Any, Callable[..., None]]]:
        from celery import signals

        return [
            (signals.before_task_publish, _before_publish),
            (signals.task_prerun, _prerun),
            (signals.task_postrun, _postrun),
            (signals.task_failure, _failure),
            (signals.task_retry, _retry),
            (signals.task_received, _received),
            (signals.task_revoked, _revoked),
            (signals.worker_ready, _worker_ready),
            (signals.worker_process_init, _child_begins),
            (signals.worker_process_shutdown, _child_ends),
        ]

    def _instrument(self, **_kwargs: Any) -> None:
        import celery.app.base

        self._takeover.begin()
        for signal, receiver in self._signals():
            signal.connect(receiver, weak=False)
        wrapt.wrap_function_wrapper(celery.app.base, "Celery.send_task", _send_task)
        # Imported only by those processes that are a worker, a beat, or talk to Redis.
        for module, name, wrapper in _LATE:
            wrapt.register_post_import_hook(functools.partial(_wrap_late, name, wrapper), module)
        # Celery hands every task's arguments to the log as an extra field.
        logs.hide_field("celery", "data")

    def _uninstrument(self, **_kwargs: Any) -> None:
        import importlib
        import sys

        import celery.app.base

        for signal, receiver in self._signals():
            signal.disconnect(receiver)
        unwrap(celery.app.base.Celery, "send_task")
        for module, name, _wrapper in _LATE:
            if module in sys.modules:
                owner: Any = importlib.import_module(module)
                *path, last = name.split(".")
                for part in path:
                    owner = getattr(owner, part)
                unwrap(owner, last)
        self._takeover.end()


_LATE: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("celery.beat", "Scheduler.apply_async", _beat),
    ("celery.worker.strategy", "create_request_cls", _create_request_cls),
    ("kombu.transport.redis", "Channel._get_client", _quiet_client),
)


def _wrap_late(name: str, wrapper: Callable[..., Any], module: Any) -> None:
    with guard(f"celery: wrapping {name}"):
        wrapt.wrap_function_wrapper(module, name, wrapper)
