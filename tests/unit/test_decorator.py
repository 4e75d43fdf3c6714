"""`otel_kit.job` and what goes with it: a run around the body of any function, and everything else as it was."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import inspect
import pickle
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_kit.jobs import decorator, recorder, steps
from otel_kit.jobs.decorator import declaration, job
from otel_kit.jobs.model import Job, Outcome, Trigger
from otel_kit.jobs.recorder import Recorder, current_run
from otel_kit.jobs.steps import progress, step


class Spans:
    """What has ended, and the recorder that made it."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.recorder = Recorder()
        self.recorder._tracer = self.provider.get_tracer("test")

    def __iter__(self) -> Iterator[ReadableSpan]:
        return iter(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def outcomes(self, name: str) -> list[Any]:
        return [span.attributes["job.outcome"] for span in self.named(name) if span.attributes]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    made = Spans()
    monkeypatch.setattr(recorder, "_recorder", made.recorder)
    monkeypatch.setattr(steps, "_tracer", made.recorder._tracer)
    monkeypatch.setattr(decorator, "_declared", {})
    return made


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = otel_context.get_current()
    yield
    assert otel_context.get_current() == before


def current_name() -> str | None:
    run = current_run()
    return run.job.name if run is not None else None


# What is decorated stays what it was


@job("module-level", max_runtime=5)
def module_level(number: int, *, double: bool = False) -> int:
    """Its text."""
    return number * 2 if double else number


@job
async def module_coroutine() -> str:
    return "awaited"


@job
def module_generator() -> Iterator[int]:
    yield 1


@job
async def module_asynchronous_generator() -> AsyncIterator[int]:
    yield 1


def test_a_function_keeps_name_text_signature_and_kind() -> None:
    assert (module_level.__name__, module_level.__doc__) == ("module_level", "Its text.")
    assert str(inspect.signature(module_level)) == "(number: 'int', *, double: 'bool' = False) -> 'int'"
    assert inspect.isfunction(module_level)
    assert inspect.iscoroutinefunction(module_coroutine)
    assert inspect.isgeneratorfunction(module_generator)
    assert inspect.isasyncgenfunction(module_asynchronous_generator)


def test_a_function_can_be_pickled_and_arrives_decorated() -> None:
    for function in (module_level, module_coroutine, module_generator):
        assert pickle.loads(pickle.dumps(function)) is function


def test_arguments_and_results_go_through(spans: Spans) -> None:
    assert module_level(4, double=True) == 8
    assert asyncio.run(module_coroutine()) == "awaited"
    assert list(module_generator()) == [1]
    with pytest.raises(TypeError, match="module_level"):
        module_level()  # type: ignore[call-arg]


def test_methods_static_class_and_plain_are_jobs(spans: Spans) -> None:
    class Shop:
        @job("plain")
        def plain(self) -> object:
            return self

        @job("class")
        @classmethod
        def of_class(cls) -> object:
            return cls

        @classmethod
        @job("inner")
        def inner(cls) -> object:
            return cls

        @job("static")
        @staticmethod
        def of_none(number: int) -> int:
            return number

    shop = Shop()
    assert shop.plain() is shop
    assert shop.of_class() is Shop
    assert Shop.inner() is Shop
    assert shop.of_none(3) == Shop.of_none(3) == 3
    assert [span.name for span in spans] == ["plain", "class", "inner", "static", "static"]


def test_objects_that_can_be_called_and_partials_are_jobs(spans: Spans) -> None:
    class Adder:
        def __call__(self, number: int) -> int:
            return number

    class Waiter:
        async def __call__(self) -> str | None:
            await asyncio.sleep(0)
            return current_name()

    assert job("object")(Adder())(2) == 2
    assert job("partial")(functools.partial(divmod, 7))(2) == (3, 1)
    assert asyncio.run(job("awaitable")(Waiter())()) == "awaitable"
    assert [span.name for span in spans] == ["object", "partial", "awaitable"]


def test_types_survive_strict_checking(tmp_path: Path) -> None:
    (tmp_path / "typed.py").write_text("""
from collections.abc import AsyncIterator, Iterator
from otel_kit.jobs.decorator import job
from otel_kit.jobs.steps import step

@job("a", schedule="0 2 * * *", max_runtime=900, expected=(KeyError, ValueError))
def a(x: int, *, y: str = "") -> bytes: return b""
@job
async def b(x: int) -> str: return ""
@job()
def c() -> Iterator[int]: yield 1
@job(expected=KeyError)
async def d() -> AsyncIterator[int]: yield 1
@step("e")
def e(x: int) -> str: return ""
class F:
    @job
    def method(self, x: int) -> "F": return self

reveal_type(a)
reveal_type(b)
reveal_type(c)
reveal_type(d)
reveal_type(e)
reveal_type(F().method(1))
a("wrong")
""")
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "typed.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    revealed = [line.partition("Revealed type is ")[2] for line in ran.stdout.splitlines() if "Revealed" in line]
    assert [text.strip('"').replace("builtins.", "").replace("def ", "") for text in revealed] == [
        "(x: int, *, y: str =) -> bytes",
        "(x: int) -> typing.Coroutine[Any, Any, str]",
        "() -> typing.Iterator[int]",
        "() -> typing.AsyncIterator[int]",
        "(x: int) -> str",
        "typed.F",
    ], ran.stdout
    errors = [line for line in ran.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, ran.stdout
    assert 'incompatible type "str"; expected "int"' in errors[0]


# The span is open exactly while the body runs


def test_the_run_is_current_inside_and_only_there(spans: Spans) -> None:
    @job("inside")
    def work() -> tuple[str | None, int]:
        return current_name(), trace.get_current_span().get_span_context().span_id

    name, span_id = work()
    assert name == "inside"
    assert spans.one("inside").context.span_id == span_id
    assert current_run() is None


def test_a_coroutine_is_a_run_while_it_is_awaited_and_not_before(spans: Spans) -> None:
    @job("coroutine")
    async def work() -> str | None:
        await asyncio.sleep(0)
        return current_name()

    async def main() -> None:
        pending = work()
        await asyncio.sleep(0)
        assert not list(spans)
        assert spans.recorder.running.snapshot() == []
        assert await pending == "coroutine"
        assert current_run() is None

    asyncio.run(main())
    assert spans.outcomes("coroutine") == ["success"]


def test_a_generator_is_a_run_from_its_first_item_and_current_only_while_it_works(spans: Spans) -> None:
    @job("items")
    def items() -> Generator[str | None, str, str]:
        got = yield current_name()
        yield got
        return "returned"

    made = items()
    assert spans.recorder.running.snapshot() == []
    assert next(made) == "items"
    assert current_run() is None
    assert len(spans.recorder.running) == 1
    assert made.send("sent") == "sent"
    with pytest.raises(StopIteration) as stop:
        next(made)
    assert stop.value.value == "returned"
    assert spans.outcomes("items") == ["success"]
    assert len(spans.recorder.running) == 0


def test_what_a_generator_puts_in_force_waits_for_it_and_is_not_seen_outside(spans: Spans) -> None:
    @job("outer")
    def items() -> Iterator[str]:
        with step("inner"):
            yield trace.get_current_span().name  # type: ignore[attr-defined]
            yield trace.get_current_span().name  # type: ignore[attr-defined]
        yield trace.get_current_span().name  # type: ignore[attr-defined]

    seen = []
    for name in items():
        assert not trace.get_current_span().get_span_context().is_valid
        seen.append(name)
    assert seen == ["inner", "inner", "outer"]


def test_generators_that_take_turns_keep_their_own_runs(spans: Spans) -> None:
    @job("turns")
    def items(number: int) -> Iterator[int]:
        for _ in range(3):
            run = current_run()
            assert run is not None
            ids.setdefault(number, set()).add(run.job.id)
            yield number

    ids: dict[int, set[str]] = {}
    assert list(zip(items(1), items(2), strict=True)) == [(1, 2)] * 3
    assert len(ids[1]) == len(ids[2]) == 1
    assert ids[1] != ids[2]


def test_a_generator_may_be_continued_by_other_threads(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    @job("wandering")
    def items() -> Iterator[str | None]:
        yield current_name()
        yield current_name()

    made = items()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        assert one.submit(next, made).result() == "wandering"
        assert two.submit(next, made).result() == "wandering"
        assert one.submit(lambda: next(made, "end")).result() == "end"
    assert spans.outcomes("wandering") == ["success"]
    assert "Failed to detach" not in caplog.text


def test_a_generator_that_is_closed_early_has_done_what_was_wanted(spans: Spans) -> None:
    @job("early")
    def items() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(current_name())

    closed: list[str | None] = []
    for _ in items():
        break
    gc.collect()
    assert closed == ["early"]
    assert spans.outcomes("early") == ["success"]


def test_what_is_thrown_into_a_generator_reaches_it(spans: Spans) -> None:
    @job("thrown")
    def items() -> Iterator[int]:
        try:
            yield 1
        except KeyError:
            yield 2

    made = items()
    assert isinstance(made, Generator)
    next(made)
    assert made.throw(KeyError("in")) == 2
    with pytest.raises(ValueError, match="out"):
        made.throw(ValueError("out"))
    assert spans.outcomes("thrown") == ["failure"]


def test_a_generator_that_will_not_close_is_an_error_as_ever(spans: Spans) -> None:
    @job("stubborn")
    def items() -> Iterator[int]:
        with contextlib.suppress(GeneratorExit):
            yield 1
        yield 2

    made = items()
    assert isinstance(made, Generator)
    next(made)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        made.close()
    assert spans.outcomes("stubborn") == ["failure"]


def test_an_asynchronous_generator_is_a_run_while_it_works(spans: Spans) -> None:
    @job("stream")
    async def items() -> AsyncGenerator[str | None, str]:
        await asyncio.sleep(0)
        got = yield current_name()
        yield got

    async def main() -> None:
        made = items()
        assert await made.asend(None) == "stream"  # type: ignore[arg-type]
        assert current_run() is None
        assert await made.asend("sent") == "sent"
        with pytest.raises(StopAsyncIteration):
            await anext(made)

    asyncio.run(main())
    assert spans.outcomes("stream") == ["success"]


def test_an_asynchronous_generator_closes_its_body(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    @job("stream")
    async def items() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append(current_name())

    closed: list[str | None] = []

    async def main(explicitly: bool) -> None:
        made = items()
        async for _ in made:
            break
        if explicitly:
            await made.aclose()  # type: ignore[attr-defined]
        del made
        while not closed:
            await asyncio.sleep(0.01)

    for explicitly in (True, False):  # else it is closed by the loop, in a task of its own
        closed.clear()
        asyncio.run(main(explicitly))
        assert closed == ["stream"]
    assert spans.outcomes("stream") == ["success", "success"]
    assert "Failed to detach" not in caplog.text


def test_what_is_thrown_into_an_asynchronous_generator_reaches_it(spans: Spans) -> None:
    @job("stream")
    async def items() -> AsyncIterator[int]:
        try:
            yield 1
        except KeyError:
            yield 2

    async def main() -> None:
        made = items()
        assert isinstance(made, AsyncGenerator)
        await anext(made)
        assert await made.athrow(KeyError("in")) == 2
        with pytest.raises(ValueError, match="out"):
            await made.athrow(ValueError("out"))

    asyncio.run(main())
    assert spans.outcomes("stream") == ["failure"]


# How it ends


class ExpectedError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [
        (ZeroDivisionError("x"), "failure", "ERROR"),
        (ExpectedError("x"), "failure", "UNSET"),
        (KeyboardInterrupt(), "revoked", "UNSET"),
        (asyncio.CancelledError(), "revoked", "UNSET"),
        (SystemExit(0), "success", "UNSET"),
        (SystemExit(None), "success", "UNSET"),
        (SystemExit(3), "failure", "ERROR"),
        (SystemExit("no disk"), "failure", "ERROR"),
    ],
)
def test_the_very_error_goes_on_and_the_outcome_says_what_it_means(
    spans: Spans, error: BaseException, outcome: str, status: str
) -> None:
    @job("ends", expected=ExpectedError)
    def work() -> None:
        raise error

    @job("ends-later", expected=(ExpectedError,))
    async def wait() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        work()
    assert raised.value is error
    coroutine = wait()
    with pytest.raises(type(error)) as raised:
        coroutine.send(None)
    assert raised.value is error
    assert spans.outcomes("ends") == spans.outcomes("ends-later") == [outcome]
    assert {span.status.status_code.name for span in spans} == {status}


def test_a_traceback_shows_the_body_and_one_frame_of_ours(spans: Spans) -> None:
    @job("fails")
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        work()
    assert [frame.name for frame in traceback.extract_tb(raised.tb)][1:] == ["call", "work"]


def test_a_cancelled_task_is_cancelled_and_its_run_revoked(spans: Spans) -> None:
    @job("cancelled")
    async def work() -> None:
        started.set()
        await asyncio.sleep(60)

    started = asyncio.Event()

    async def main() -> None:
        task = asyncio.create_task(work())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())
    assert spans.outcomes("cancelled") == ["revoked"]


def test_a_coroutine_that_is_thrown_away_in_the_middle_is_revoked(
    spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    @job("dropped")
    async def work() -> None:
        await asyncio.sleep(0)

    pending = work()
    contextvars.copy_context().run(pending.send, None)
    pending.close()
    assert spans.outcomes("dropped") == ["revoked"]
    assert "Failed to detach" not in caplog.text


def test_nothing_holds_on_to_what_a_run_has_used(spans: Spans) -> None:
    class Big:
        pass

    @job("holds")
    def work(big: Big) -> None:
        raise ValueError(big)

    @job("holds-items")
    def items(big: Big) -> Iterator[int]:
        yield 1
        raise ValueError(big)

    kept = []
    for function in (work, items):
        big = Big()
        kept.append(weakref.ref(big))
        with contextlib.suppress(ValueError):
            list(function(big) or ())
        del big
    spans.exporter.clear()
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_an_error_that_was_thrown_into_a_generator_is_gone_with_its_last_user(spans: Spans) -> None:
    class Big:
        pass

    @job("holds")
    def items() -> Iterator[int]:
        yield 1

    def use() -> weakref.ref[Big]:
        made, big = items(), Big()
        assert isinstance(made, Generator)
        next(made)
        try:
            made.throw(ValueError(big))
        except ValueError:
            return weakref.ref(big)
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        reference = use()
        assert reference() is None
    finally:
        gc.enable()


# Names, nesting, triggers


def test_without_a_name_it_is_the_functions_with_its_module() -> None:
    found = declaration(module_coroutine)
    assert found is not None
    assert found.name == f"{__name__}.module_coroutine"

    @job
    def local() -> None:
        pass

    found = declaration(local)
    assert found is not None
    assert found.name == f"{__name__}.local"


def test_a_declaration_is_found_through_partials_methods_and_later_decorators() -> None:
    class Shop:
        @job("method")
        def method(self) -> None:
            pass

    @functools.wraps(module_level)
    def outer(*args: Any) -> int:
        return module_level(*args)

    for function in (functools.partial(functools.partial(module_level, 1)), outer, module_level):
        found = declaration(function)
        assert found is not None
        assert (found.name, found.max_runtime) == ("module-level", 5.0)
    found = declaration(Shop().method)
    assert found is not None
    assert found.name == "method"
    assert declaration(len) is None
    assert declaration(None) is None


def test_recursion_is_one_run(spans: Spans) -> None:
    @job("recursive")
    def work(depth: int) -> int:
        return 0 if depth == 0 else 1 + work(depth - 1)

    assert work(5) == 5
    assert len(spans.named("recursive")) == 1


def test_another_job_inside_is_a_child_and_a_job_of_its_own(spans: Spans) -> None:
    @job("inner")
    def inner() -> None:
        pass

    @job("outer")
    def outer() -> None:
        inner()
        inner()

    outer()
    outer_span = spans.one("outer")
    assert [span.parent.span_id for span in spans.named("inner") if span.parent] == [outer_span.context.span_id] * 2
    assert len({span.attributes["job.id"] for span in spans if span.attributes}) == 3


@pytest.mark.parametrize("name", ["{module}.work", "work", "__main__.work"])
def test_inside_a_frameworks_run_of_the_same_function_it_adds_nothing(spans: Spans, name: str) -> None:
    @job
    def work() -> str | None:
        return current_name()

    framework_name = name.format(module=__name__)
    run = spans.recorder.start(Job(framework_name, "1", queue="q", system="redis"))
    assert work() == framework_name
    run.finish(Outcome.SUCCESS)
    assert [span.name for span in spans] == ["process q"]


def test_a_function_of_the_same_short_name_elsewhere_is_another_job(spans: Spans) -> None:
    @job
    def work() -> None:
        pass

    @job("work")
    def outer() -> None:
        work()

    outer()
    assert [span.name for span in spans] == [f"{__name__}.work", "work"]


def test_inside_a_frameworks_run_of_another_name_it_is_a_job_of_its_own(spans: Spans) -> None:
    @job("by-hand")
    def work() -> None:
        pass

    run = spans.recorder.start(Job("tasks.work", "1", queue="q", system="redis"))
    work()
    run.finish(Outcome.SUCCESS)
    inner, outer = spans.one("by-hand"), spans.one("process q")
    assert inner.parent is not None
    assert inner.parent.span_id == outer.context.span_id
    assert inner.kind is trace.SpanKind.INTERNAL
    assert inner.attributes is not None
    assert not [name for name in inner.attributes if name.startswith("messaging.")]


def test_a_run_that_has_ended_is_no_run_any_more(spans: Spans) -> None:
    @job("again")
    def work() -> contextvars.Context:
        return contextvars.copy_context()

    leftover = work()
    leftover.run(work)
    assert len(spans.named("again")) == 2


def test_runs_side_by_side_are_told_apart(spans: Spans) -> None:
    @job("parallel")
    async def wait(number: int) -> int:
        await asyncio.sleep(0.01)
        return number

    @job("parallel")
    def work(number: int) -> int:
        barrier.wait(5)
        assert len(spans.recorder.running) == 4
        barrier.wait(5)
        return number

    async def main() -> list[int]:
        return await asyncio.gather(*(wait(number) for number in range(20)))

    assert asyncio.run(main()) == list(range(20))
    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(work, range(4))) == [0, 1, 2, 3]
    assert len({span.attributes["job.id"] for span in spans if span.attributes}) == 24
    assert all(span.parent is None for span in spans)


@pytest.mark.parametrize(
    ("arguments", "trigger"),
    [({}, Trigger.MANUAL), ({"schedule": "0 2 * * *"}, Trigger.CRON), ({"schedule": 60}, Trigger.SCHEDULE)],
)
def test_who_calls_it_is_known_from_its_schedule(spans: Spans, arguments: dict[str, Any], trigger: Trigger) -> None:
    job("called", **arguments)(lambda: None)()
    attributes = spans.one("called").attributes
    assert attributes is not None
    assert attributes["job.trigger"] == trigger.value


def test_inside_a_request_it_is_the_api_that_calls(spans: Spans) -> None:
    with spans.provider.get_tracer("web").start_as_current_span("GET /", kind=trace.SpanKind.SERVER):
        job("called", schedule=60)(lambda: None)()
    attributes = spans.one("called").attributes
    assert attributes is not None
    assert attributes["job.trigger"] == "api"


def test_what_is_declared_travels_with_the_run(spans: Spans) -> None:
    seen = []

    @job("declared", max_runtime=timedelta(minutes=5), recoverable=True)
    def work() -> None:
        seen.extend(spans.recorder.running.snapshot())

    work()
    assert [(entry.job.name, entry.job.max_runtime, entry.job.recoverable) for entry in seen] == [
        ("declared", 300.0, True)
    ]


def test_what_is_declared_is_announced_once_telemetry_has_started(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decorator, "_announced", False)
    history = spans.recorder.tally.history
    job("early", schedule=600, grace=30, max_runtime=10)(lambda: None)
    assert history.observe_deadlines() == []
    before = time.time()
    decorator.announce()
    ((deadline, labels),) = history.observe_deadlines()
    assert labels == {"job.name": "early"}
    assert before + 630 <= deadline <= time.time() + 630
    job("late", max_runtime=20)(lambda: None)
    assert {labels["job.name"]: limit for limit, labels in history.observe_limits()} == {"early": 10, "late": 20}
    assert {labels["job.name"] for _, labels in history.observe_consecutive()} == {"early", "late"}


# Mistakes are told at once


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        ({"max_runtime": -1}, ValueError, r"max_runtime=-1 is not accepted; accepted: seconds or a timedelta"),
        ({"max_runtime": 0}, ValueError, "max_runtime=0"),
        ({"max_runtime": True}, ValueError, "max_runtime=True"),
        ({"max_runtime": "900"}, ValueError, "max_runtime='900'"),
        ({"max_runtime": float("nan")}, ValueError, "max_runtime=nan"),
        ({"schedule": 60, "grace": -5}, ValueError, "grace=-5"),
        ({"grace": 5}, ValueError, "grace=5 says nothing without a schedule"),
        ({"timezone": "UTC"}, ValueError, "timezone='UTC' says nothing without a schedule"),
        ({"schedule": "0 25 * * *"}, ValueError, r"schedule='0 25 \* \* \*' is not accepted"),
        ({"schedule": "0 2 * * *", "timezone": "Mars/Base"}, ValueError, "timezone='Mars/Base'"),
        ({"expected": "ValueError"}, TypeError, "expected='ValueError' is not accepted; accepted: an exception class"),
        ({"expected": (ValueError, 3)}, TypeError, "expected="),
        ({"recoverable": "yes"}, TypeError, "recoverable='yes'"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(arguments: dict[str, Any], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        job("x", **arguments)


@pytest.mark.parametrize("name", ["", "   ", "x" * 201])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="job name"):
        job(name)


@pytest.mark.parametrize("thing", [3, dict, ["x"], b"name"])
def test_what_is_no_function_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"otel_kit\.job decorates functions"):
        job(thing)
    with pytest.raises(TypeError, match=r"otel_kit\.job decorates functions"):
        job("x")(thing)


# A fault of ours never reaches the function


def test_a_fault_of_ours_does_not_reach_the_function(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_VERSION", raising=False)

    def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("of ours")

    work = job("works")(lambda: "result")
    items = job("works-items")(lambda: (yield 1))
    monkeypatch.setattr(spans.recorder, "start", broken)
    assert work() == "result"
    assert list(items()) == [1]


# Steps


def test_a_step_is_a_span_below_the_run_and_its_duration_is_counted(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[str, str, float]] = []
    monkeypatch.setattr(spans.recorder.tally, "step", lambda job, name, took: counted.append((job.name, name, took)))

    @step("decorated")
    def helper() -> int:
        return 1

    @step("awaited")
    async def wait() -> int:
        await asyncio.sleep(0)
        return 2

    @job("stages")
    async def work() -> int:
        with step("plain"):
            first = helper()
        async with step("asynchronous"):
            return first + await wait()

    assert asyncio.run(work()) == 3
    run = spans.one("stages").context.span_id
    assert spans.one("plain").parent.span_id == spans.one("asynchronous").parent.span_id == run  # type: ignore[union-attr]
    assert spans.one("decorated").parent.span_id == spans.one("plain").context.span_id  # type: ignore[union-attr]
    assert [(name, stage) for name, stage, _ in counted] == [
        ("stages", "decorated"), ("stages", "plain"), ("stages", "awaited"), ("stages", "asynchronous"),
    ]  # fmt: skip
    assert all(0 <= took < 5 for *_, took in counted)
    attributes = spans.one("plain").attributes
    assert attributes is not None
    assert (attributes["job.step"], attributes["job.name"]) == ("plain", "stages")
    assert spans.one("plain").kind is trace.SpanKind.INTERNAL


def test_outside_a_job_a_step_is_a_span_alone(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[object] = []
    monkeypatch.setattr(spans.recorder.tally, "step", lambda *args: counted.append(args))
    with step("alone"):
        pass
    assert spans.one("alone").parent is None
    assert counted == []


def test_an_error_marks_the_step_and_goes_on_and_a_cancellation_does_not_mark_it(spans: Spans) -> None:
    error = KeyError("x")
    with pytest.raises(KeyError) as raised, step("fails"):
        raise error
    assert raised.value is error
    failed = spans.one("fails")
    assert failed.status.status_code.name == "ERROR"
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "KeyError"
    with pytest.raises(asyncio.CancelledError), step("cancelled"):
        raise asyncio.CancelledError
    assert spans.one("cancelled").status.status_code.name == "UNSET"


def test_one_step_may_be_shared_by_tasks_and_by_recursion(spans: Spans) -> None:
    shared = step("shared")

    async def wait(number: int) -> None:
        with step(f"task-{number}"), shared:
            await asyncio.sleep(0.02 * (1 + number))

    async def main() -> None:
        await asyncio.gather(*(wait(number) for number in range(3)))

    asyncio.run(main())
    parents = {span.parent.span_id for span in spans.named("shared") if span.parent}
    assert parents == {spans.one(f"task-{number}").context.span_id for number in range(3)}
    ends = {span.context.span_id: span.end_time for span in spans}
    assert all(span.end_time <= ends[span.parent.span_id] for span in spans.named("shared") if span.parent)  # type: ignore[operator]
    with shared, shared:
        pass
    outer, inner = sorted(spans.named("shared")[-2:], key=lambda span: span.start_time or 0)
    assert inner.parent is not None
    assert inner.parent.span_id == outer.context.span_id


def test_a_wrong_step_is_refused() -> None:
    for name in ("", " ", "x" * 201):
        with pytest.raises(ValueError, match="step name"):
            step(name)
    with pytest.raises(TypeError, match="step name"):
        step(test_a_wrong_step_is_refused)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="put `with step"):
        step("x")(module_generator.__wrapped__)  # type: ignore[attr-defined]


# Progress


@pytest.fixture
def told(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the log is told of progress."""
    found: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        spans.recorder, "emit", lambda _event, sentence, _job, attributes, **_: found.append((sentence, attributes))
    )
    return found


def test_progress_is_told_first_once_a_second_and_at_the_end(
    spans: Spans, told: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(steps.time, "monotonic", lambda: now)
    entries = []

    @job("copies")
    def work() -> None:
        nonlocal now
        for copied in range(81):
            progress(copied / 80, f"copied {copied} of 80")
            now += 0.125
        progress(1.0, "again")
        entries.extend(spans.recorder.running.snapshot())

    work()
    assert [attributes["job.progress"] for _, attributes in told] == [0.0, *(n / 10 for n in range(1, 10)), 1.0]
    assert told[4][0] == "Job copies is at 40%: copied 32 of 80"
    assert [event.name for event in spans.one("copies").events] == ["job.progress"] * 11
    assert [(entry.progress, entry.message) for entry in entries] == [(1.0, "again")]


def test_each_run_tells_of_its_own_progress(spans: Spans, told: list[tuple[str, dict[str, Any]]]) -> None:
    work = job("copies")(lambda: progress(0.5))
    work()
    work()
    assert len(told) == 2


@pytest.mark.parametrize("fraction", [None, "much", float("nan"), object(), [], 10**400, b"\xff"])
def test_progress_that_is_no_number_is_no_error(
    spans: Spans, told: list[tuple[str, dict[str, Any]]], fraction: Any
) -> None:
    job("copies")(lambda: progress(fraction, object()))()  # type: ignore[arg-type]
    assert [span.attributes["job.outcome"] for span in spans if span.attributes] == ["success"]


@pytest.mark.parametrize(("fraction", "share"), [(-3, 0.0), (7, 1.0), (float("inf"), 1.0), ("0.25", 0.25), (True, 1.0)])
def test_progress_beyond_its_ends_is_the_nearer_end(
    spans: Spans, told: list[tuple[str, dict[str, Any]]], fraction: Any, share: float
) -> None:
    job("copies")(lambda: progress(fraction))()
    assert [attributes["job.progress"] for _, attributes in told] == [share]


def test_outside_a_job_progress_is_nothing(told: list[tuple[str, dict[str, Any]]]) -> None:
    progress(0.5, "nobody asks")
    assert told == []


def test_a_decorated_function_costs_little(spans: Spans) -> None:
    calls: list[Callable[[], object]] = [job("cheap")(lambda: None)]
    calls[0]()
    began = time.perf_counter()
    for _ in range(200):
        calls[0]()
    assert (time.perf_counter() - began) / 200 < 0.01
