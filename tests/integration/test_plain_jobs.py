"""Plain functions as jobs in real processes: scripts of crontab, forks, pools, and what the next process knows of them."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from otel_kit.testing import OtlpSink, Span
from tests.integration.conftest import Programs, eventually

START = """
import asyncio, os, sys, time
import otel_kit
otel_kit.configure("scripts")
"""


def runs(sink: OtlpSink, job: str) -> list[Span]:
    found = [span for span in sink.spans if span.attributes.get("job.name") == job and "job.outcome" in span.attributes]
    return sorted(found, key=lambda span: span.start)


def gauge(sink: OtlpSink, name: str, job: str) -> list[float]:
    return [p.value for p in sink.points if p.name == name and p.attributes.get("job.name") == job]


def executions(sink: OtlpSink, job: str) -> dict[str, int]:
    """By outcome, over all processes."""
    latest = {
        (point.resource["service.instance.id"], point.attributes["job.outcome"]): int(point.value)
        for point in sink.points
        if point.name == "job.executions" and point.attributes["job.name"] == job
    }
    summed: Counter[str] = Counter()
    for (_, outcome), value in latest.items():
        summed[outcome] += value
    return {outcome: number for outcome, number in summed.items() if number}


def test_a_script_of_a_second_tells_everything_of_its_job(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(START + """
@otel_kit.job("nightly-report", schedule="0 2 * * *", timezone="UTC", max_runtime=900)
def report():
    with otel_kit.step("transcribe"):
        otel_kit.progress(1.0, "all of it")
report()
""")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    (span,) = runs(sink, "nightly-report")
    assert (span.kind, span.name) == ("INTERNAL", "nightly-report")
    assert (span.attributes["job.trigger"], span.attributes["job.outcome"]) == ("cron", "success")
    assert executions(sink, "nightly-report") == {"success": 1}
    now = time.time()
    midnight = now - now % 86_400
    two = midnight + 7200 if now % 86_400 < 7200 else midnight + 86_400 + 7200
    assert set(gauge(sink, "job.deadline.time", "nightly-report")) == {two + 900 + 60}
    assert set(gauge(sink, "job.max_runtime", "nightly-report")) == {900}
    assert gauge(sink, "job.last_success.time", "nightly-report")[-1] == pytest.approx(span.end, abs=0.1)
    (step,) = [each for each in sink.spans if each.name == "transcribe"]
    assert (step.parent_id, step.attributes["job.step"]) == (span.span_id, "transcribe")
    (point,) = [p for p in sink.points if p.name == "job.step.duration"][-1:]
    assert point.attributes == {"job.name": "nightly-report", "job.step": "transcribe"}
    events = [record.event_name for record in sink.logs if record.attributes.get("job.name") == "nightly-report"]
    assert events == ["job.started", "job.progress", "job.completed"]
    said = next(record for record in sink.logs if record.event_name == "job.progress")
    assert said.body == "Job nightly-report is at 100%: all of it"
    assert said.attributes["job.progress"] == 1.0


def test_the_next_process_knows_what_the_one_before_has_seen(programs: Programs, sink: OtlpSink) -> None:
    script = START + """
import contextlib
@otel_kit.job("import", schedule=3600, grace=100)
def load(fail):
    if fail: raise ConnectionError("nobody there")
for fail in map(int, sys.argv[1:]):
    with contextlib.suppress(ConnectionError): load(fail)
"""  # fmt: skip
    programs.write("script", script)

    def call(*outcomes: str) -> None:
        process = programs.start(sys.executable, "script.py", *outcomes)
        assert process.wait(60) == 0, programs.output(process)

    call()  # deployed, and has not run: due an hour after it was first heard of
    never_ran = set(gauge(sink, "job.deadline.time", "import"))
    assert len(never_ran) == 1
    (first_due,) = never_ran
    assert first_due == pytest.approx(time.time() + 3700, abs=60)
    sink.clear()
    call()  # deployed again: that does not put it off
    assert set(gauge(sink, "job.deadline.time", "import")) == never_ran
    sink.clear()
    call("0")
    success = gauge(sink, "job.last_success.time", "import")[-1]
    assert gauge(sink, "job.deadline.time", "import")[-1] == pytest.approx(success + 3700, abs=0.01)
    sink.clear()
    call("1", "1")
    call("1")
    assert gauge(sink, "job.consecutive_failures", "import")[-1] == 3
    assert set(gauge(sink, "job.last_success.time", "import")) == {success}
    assert set(gauge(sink, "job.deadline.time", "import")) == {success + 3700}
    sink.clear()
    call("0")
    assert gauge(sink, "job.consecutive_failures", "import")[-1] == 0


def test_a_process_that_is_killed_is_remembered_as_having_started(programs: Programs, sink: OtlpSink) -> None:
    process = programs.start(sys.executable, "-c", START + """
@otel_kit.job("endless")
def endless(): time.sleep(60)
endless()
""")  # fmt: skip
    sink.wait_for(lambda s: gauge(s, "job.active", "endless")[-1:] == [1], 30)
    started = gauge(sink, "job.last_start.time", "endless")[-1]
    eventually(lambda: list((programs.directory / "spool").glob("*/jobs/jobs.json")), 15)
    process.kill()
    process.wait(10)
    sink.clear()
    ran = programs.run(START + """
@otel_kit.job("endless")
def endless(): time.sleep(60)
""")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert set(gauge(sink, "job.last_start.time", "endless")) == {started}
    sink.clear()
    ran = programs.run(START)  # a service that no longer has the job
    assert ran.returncode == 0, ran.stderr
    assert gauge(sink, "job.last_start.time", "endless") == []


def test_children_of_a_fork_count_their_own_runs_and_nobody_elses(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run(START + """
@otel_kit.job("work")
def work(): return otel_kit.jobs
work()
for _ in range(2):
    child = os.fork()
    if child == 0:
        work()
        work()
        sys.exit()
    os.waitpid(child, 0)
work()
""")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    sink.wait_for(lambda s: len(runs(s, "work")) == 6, 20)
    assert Counter(span.resource["process.pid"] for span in runs(sink, "work")).most_common()[0][1] == 2
    assert executions(sink, "work") == {"success": 6}


def test_inside_a_celery_task_of_the_same_function_there_is_one_job(
    programs: Programs, sink: OtlpSink, redis_url: str
) -> None:
    ran = programs.run(START + """
from celery import Celery
app = Celery("jobs", broker=os.environ["BROKER"], set_as_current=False)
app.conf.task_always_eager = True
@app.task(name="report")
@otel_kit.job("report", expected=KeyError)
def report(number): return number * 2
@app.task(name="tasks.outer")
@otel_kit.job("inner")
def outer(): pass
print(report.delay(4).get(), outer.delay().get())
try:
    report.delay()
except TypeError as error:
    print("TypeError")
""", BROKER=redis_url)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["8", "None", "TypeError"]
    assert len(runs(sink, "report")) == 1
    assert executions(sink, "report") == {"success": 1}
    (outer,), (inner,) = runs(sink, "tasks.outer"), runs(sink, "inner")
    assert inner.parent_id == outer.span_id


def test_processes_of_a_pool_find_the_decorated_function_by_its_name(programs: Programs, sink: OtlpSink) -> None:
    programs.write("jobs", START + """
@otel_kit.job("square")
def square(number): return number * number
""")  # fmt: skip
    ran = programs.run("""
import multiprocessing
import jobs
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
    print(list(pool.map(jobs.square, range(4))))
""")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[0, 1, 4, 9]"
    sink.wait_for(lambda s: len(runs(s, "square")) == 4 and executions(s, "square") == {"success": 4}, 20)


def test_without_configure_decorated_functions_work_and_send_nothing(programs: Programs, sink: OtlpSink) -> None:
    ran = programs.run("""
import otel_kit
@otel_kit.job("quiet", schedule="0 2 * * *", max_runtime=5)
def quiet():
    with otel_kit.step("s"):
        otel_kit.progress(0.5)
    return "worked"
print(quiet())
""")
    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, "worked", "")
    assert sink.spans == []
    assert sink.points == []


def test_a_script_that_calls_exit_has_succeeded_and_one_that_dies_of_an_error_has_not(
    programs: Programs, sink: OtlpSink
) -> None:
    for ending, code in (("sys.exit()", 0), ("sys.exit(3)", 3), ("1 / 0", 1)):
        ran = programs.run(START + f"@otel_kit.job('main')\ndef main(): {ending}\nmain()")
        assert ran.returncode == code
    assert [span.attributes["job.outcome"] for span in runs(sink, "main")] == ["success", "failure", "failure"]
    assert executions(sink, "main") == {"success": 1, "failure": 2}


def test_the_example_runs_as_its_page_says(programs: Programs, sink: OtlpSink) -> None:
    example = Path(__file__).parents[2] / "examples" / "plain_python" / "report.py"
    process = programs.start(sys.executable, str(example))
    process.wait(60)
    (span,) = runs(sink, "nightly-report")
    assert span.status == "UNSET", programs.output(process)
    assert "read" in {each.name for each in sink.spans if each.parent_id == span.span_id}
    assert gauge(sink, "job.deadline.time", "nightly-report")
