"""The demo against the running stack: the same services, and every backend asked for what they have sent."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import httpx
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from otel_kit.demo import render
from otel_kit.demo.embedded import QUICK_EXPORT, Progress
from otel_kit.demo.pipeline import SERVICES, Pipeline, running_pipeline
from otel_kit.demo.processes import PartFailedError
from otel_kit.demo.questions import MATRIX, SIGNALS, WHOLE, Run
from otel_kit.stack.endpoints import Endpoints
from otel_kit.stack.errors import StackError
from otel_kit.stack.query import StackQuery

_PAUSE: Final = 0.5
_RATE: Final = "4"


@dataclass
class Answers:
    """Which questions have been answered with yes, and after how many seconds; what went wrong with the others."""

    seconds: dict[object, float] = field(default_factory=dict)
    errors: dict[object, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.seconds) == len(MATRIX) + len(WHOLE)


def run_on_stack(
    console: Console, *, timeout: float, duration: float, keep: bool, seed: int, redis: str | None = None
) -> bool:
    """Run the example against the running stack and ask every backend.

    Args:
        timeout: Seconds after the first message by which everything must be visible.
        duration: Seconds of traffic.
        keep: Go on with traffic after the answers, until Ctrl-C.

    Returns:
        Whether everything was found.

    Raises:
        PartFailedError: No stack is running, or a service could not be started or fell over.
    """
    try:
        endpoints = Endpoints.of_running()
    except StackError as error:
        raise PartFailedError("stack", str(error)) from None
    console.print(Text("Five services and a real queue, into the running stack.", "bold"))
    progress = Progress(console)
    progress("stack", f"OTLP at {endpoints.otlp_http}")
    version = f"demo-{secrets.token_hex(4)}"
    telemetry = {
        **QUICK_EXPORT,
        "OTEL_RESOURCE_ATTRIBUTES": f"deployment.environment.name=demo,service.version={version}",
    }
    with running_pipeline(endpoints.otlp_http, progress, telemetry=telemetry, redis=redis) as pipeline:
        run = Run(version, time.time())
        limit = () if keep else ("--duration", str(duration))
        load = pipeline.load("--seed", str(seed), "--rate", _RATE, *limit)
        progress("traffic", f"running as service.version {version}")
        with console.status("asking the backends") as status:

            def found(number: int) -> None:
                status.update(f"asking the backends: {number} of {len(MATRIX) + len(WHOLE)} found")

            answers = ask(endpoints, run, pipeline, timeout=timeout, found=found)
        console.print(render.heading("Found", "seconds after the first message"))
        console.print(Padding(draw(answers), (0, 0, 0, 2), expand=False))
        if keep:
            _keep_going(console, endpoints, pipeline)
        else:
            pipeline.finish_load(load, timeout=duration + 30)
    return answers.complete


def ask(endpoints: Endpoints, run: Run, pipeline: Pipeline, *, timeout: float, found: Callable[[int], None]) -> Answers:
    """Ask every open question again and again until all are answered or `timeout` seconds are over.

    Args:
        found: Called after each round with how many have been answered with yes so far.
    """
    answers = Answers()
    began = time.monotonic()
    with StackQuery(endpoints) as query:
        while True:
            for key, question in _questions(query, run).items():
                if key in answers.seconds:
                    continue
                try:
                    if question():
                        answers.seconds[key] = time.monotonic() - began
                        answers.errors.pop(key, None)
                except httpx.HTTPError as error:
                    # Tempo and Loki refuse queries for a while after their start; and one that stays away is reported.
                    answers.errors[key] = str(error) or type(error).__name__
            pipeline.processes.check()
            found(len(answers.seconds))
            if answers.complete or time.monotonic() - began > timeout:
                return answers
            time.sleep(_PAUSE)


def _questions(query: StackQuery, run: Run) -> Mapping[object, Callable[[], bool]]:
    of_services: dict[object, Callable[[], bool]] = {
        (service, signal): partial(SIGNALS[signal], query, run, service) for service, signal in MATRIX
    }
    return {**of_services, **{what: partial(question, query, run) for what, question in WHOLE.items()}}


def draw(answers: Answers) -> RenderableType:
    """The matrix of service and signal, then what concerns the whole system, then what went wrong."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("service", no_wrap=True)
    for signal in SIGNALS:
        table.add_column(signal, no_wrap=True, justify="right")
    for service in SERVICES:
        cells = [_cell(answers.seconds.get((service.name, signal))) for signal in SIGNALS]
        table.add_row(Text(service.name, render.COLOURS[service.name]), *cells)
    whole = Table.grid(padding=(0, 1))
    for what in WHOLE:
        whole.add_row(Text(what), _cell(answers.seconds.get(what)))
    wrong = [Text(f"{error}", "red") for error in dict.fromkeys(answers.errors.values())]
    return Group(table, Text(), whole, *wrong)


def _cell(seconds: float | None) -> Text:
    return Text("missing ✗", "bold red") if seconds is None else Text(f"{seconds:.1f} s ✓", "green")


def _keep_going(console: Console, endpoints: Endpoints, pipeline: Pipeline) -> None:
    where = f"Grafana: {endpoints.grafana}" if endpoints.grafana else f"Prometheus: {endpoints.prometheus}"
    console.print(f"\nTraffic goes on until Ctrl-C. {where}", soft_wrap=True)
    with suppress(KeyboardInterrupt):
        while True:
            pipeline.processes.check()
            time.sleep(1)
