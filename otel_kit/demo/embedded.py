"""The demo without any backend: real services, a real queue, and OTLP received in this process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from otel_kit.demo import render, story
from otel_kit.demo.checks import Check, Snapshot, run_checks
from otel_kit.demo.pipeline import Pipeline, running_pipeline
from otel_kit.testing import OtlpSink

#: Export often: nobody wants to wait for a demo. Milliseconds, as the specification has it.
QUICK_EXPORT: Final[Mapping[str, str]] = {
    "OTEL_BSP_SCHEDULE_DELAY": "200",
    "OTEL_BLRP_SCHEDULE_DELAY": "200",
    "OTEL_METRIC_EXPORT_INTERVAL": "1000",
}
_INDENT: Final = 2


@dataclass(frozen=True, slots=True)
class Told:
    """What came out of a run."""

    snapshot: Snapshot
    checks: list[Check]

    @property
    def complete(self) -> bool:
        return all(check.kept for check in self.checks)


class Progress:
    """Says what has been reached, each line with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()

    def __call__(self, part: str, what: str) -> None:
        line = Table.grid(padding=(0, 1))
        line.add_column("mark", style="green")
        line.add_column("part", style="bold", width=10)
        line.add_column("what")
        line.add_row("✓", part, Text.assemble(what, (f"  {time.monotonic() - self._start:.1f} s", "dim")))
        self._console.print(_indented(line))


def run_embedded(console: Console, *, count: int, seed: int, timeout: float, redis: str | None = None) -> bool:
    """Start everything, send messages, wait until their story is complete, and tell it.

    Args:
        count: How many messages the load driver sends.
        seed: Which ones.
        timeout: Seconds to wait for the story after the last message.

    Returns:
        Whether everything that the demo promises was seen.

    Raises:
        PartFailedError: Something could not be started, or fell over.
    """
    console.print(Text("Five services, a real queue, and OTLP into this terminal.", "bold"))
    progress = Progress(console)
    with OtlpSink() as sink, console.status("starting") as status:
        progress("receiver", f"OTLP at {sink.endpoint}")
        with running_pipeline(sink.endpoint, progress, telemetry=QUICK_EXPORT, redis=redis) as pipeline:
            status.update("sending messages")
            calm = _calm_requests(sink, pipeline)
            load = pipeline.load("--count", str(count), "--seed", str(seed), "--rate", "8")
            sent = pipeline.finish_load(load, timeout=30 + count)
            sent["success"] += calm
            progress("traffic", f"{sum(sent.values())} messages: {_kinds(sent)}")
            status.update("waiting for the last jobs and their telemetry")
            told = await_story(sink, pipeline, timeout=timeout)
            status.update("stopping everything")
            logs = {} if told.complete else pipeline.processes.tails()
        # Once more, with what the services sent while they went.
        told = Told(final := Snapshot.of(sink, sent, pipeline.secrets), run_checks(final))
    if told.complete:
        received = told.snapshot
        what = f"{len(received.spans)} spans, {len(received.logs)} log records, {len(received.points)} metric points"
        progress("story", f"complete: {what}")
    tell(console, told)
    for part, lines in logs.items():
        console.print(Text(f"\n{part}, last lines:", "bold"), *(Text(f"  {line}", "dim") for line in lines), sep="\n")
    return told.complete


def _calm_requests(sink: OtlpSink, pipeline: Pipeline) -> int:
    """A few messages before the rush, so that one of them shows work and not waiting; returns how many.

    The first two make each process of the pool connect; the third finds everything ready.
    """
    for number, recordings in ((2, ("calm-1", "calm-2")), (3, ("calm-3",))):
        for recording in recordings:
            pipeline.say(f"chat-1 /transcribe {recording}.ogg")
        with suppress(TimeoutError):  # what is missing then is told at the end
            sink.wait_for(partial(_whole_at_least, number, pipeline), timeout=5)
    return 3


def _whole_at_least(number: int, pipeline: Pipeline, sink: OtlpSink) -> bool:
    pipeline.processes.check()
    return len(story.whole_requests(sink.spans)) >= number


def await_story(sink: OtlpSink, pipeline: Pipeline, *, timeout: float) -> Told:
    """Poll until every check holds or `timeout` seconds are over; services that fall over end the wait at once."""
    deadline = time.monotonic() + timeout
    while True:
        pipeline.processes.check()
        snapshot = Snapshot.of(sink, pipeline.sent, pipeline.secrets)
        told = Told(snapshot, run_checks(snapshot))
        if told.complete or time.monotonic() > deadline:
            return told
        time.sleep(0.25)


def tell(console: Console, told: Told) -> None:
    """Print the story."""
    snapshot, width = told.snapshot, console.width - _INDENT
    request = story.clearest_request(snapshot.spans)
    if request:
        trace_id = request[0].trace_id
        console.print(render.heading("One request", f"trace {trace_id}"))
        console.print(_indented(render.request_tree(request, width=width)))
        console.print(render.heading("Logs of that request"))
        console.print(_indented(render.log_lines(story.records_of(trace_id, snapshot.logs), width=width)))
    rows = story.jobs(snapshot.spans, snapshot.points)
    if rows:
        console.print(render.heading("Jobs"))
        console.print(_indented(render.job_table(rows)))
    console.print(render.heading("Checked"))
    console.print(_indented(render.check_list(told.checks)))


def _indented(what: RenderableType) -> Padding:
    return Padding(what, (0, 0, 0, _INDENT), expand=False)


def _kinds(sent: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in sent.items() if number)
