"""An application to observe: a process that serves requests when it is told to, and measures what each costs it."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import dataclass
from typing import Any

from otel_kit.testing import OtlpSink
from tests.integration.conftest import Programs

APPLICATION = """
import gc, json, logging, os, sys, threading, time
import otel_kit
from opentelemetry import metrics, trace

otel_kit.configure("shop", instrument=False, shutdown_timeout=4)
logging.getLogger().setLevel(logging.INFO)
logger, tracer = logging.getLogger("shop"), trace.get_tracer("shop")
orders = metrics.get_meter("shop").create_counter("orders")
took, faults = [], []

def serve(first, last, pause):
    for n in range(first, last):
        began = time.perf_counter()
        try:
            with tracer.start_as_current_span("request", attributes={"n": n}):
                logger.info("request %d", n)
                orders.add(1)
        except Exception as error:
            faults.append(repr(error))
        took.append(time.perf_counter() - began)
        if pause:
            time.sleep(pause)

def report():
    took.sort()
    gc.collect()
    told = {
        "p50": took[len(took) // 2], "p99": took[len(took) * 99 // 100], "worst": took[-1], "faults": faults,
        "memory": int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "threads": threading.active_count(), "files": len(os.listdir("/proc/self/fd")),
    }
    took.clear()
    print(json.dumps(told), flush=True)

for line in sys.stdin:
    command, *arguments = line.split()
    if command == "serve":
        serve(*map(int, arguments[:2]), float(arguments[2]))
        report()
    elif command == "end":
        break
began = time.monotonic()
otel_kit.shutdown(4)
print(json.dumps({"shutdown": time.monotonic() - began}), flush=True)
"""


class Application:
    """The application's process, told by its standard input what to do."""

    def __init__(self, programs: Programs, **environment: str) -> None:
        programs.write("application", APPLICATION)
        self._programs = programs
        self._environment = {
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BLRP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "300",
            **environment,
        }
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Application:
        self._process = self._programs.converse("application.py", **self._environment)
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate(timeout=10)

    def serve(self, first: int, last: int, pause: float = 0.002) -> dict[str, Any]:
        """Serve the requests of these numbers, ``pause`` seconds apart.

        Returns:
            What they cost (``p50``, ``p99``, ``worst``, seconds), ``faults`` that they saw, and what the process holds:
            ``memory`` in bytes, ``threads``, open ``files``.
        """
        self._tell(f"serve {first} {last} {pause}")
        return self._hear()

    def end(self) -> float:
        """End in peace; seconds that it took."""
        self._tell("end")
        took: float = self._hear()["shutdown"]
        assert self._process is not None
        assert self._process.wait(10) == 0
        return took

    def _tell(self, command: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        heard: dict[str, Any] = json.loads(self._process.stdout.readline())
        return heard


@dataclass
class Found:
    """What a receiver has, by count."""

    spans: Counter[int]
    records: Counter[int]
    orders: float

    @classmethod
    def at(cls, sink: OtlpSink) -> Found:
        spans = Counter(span.attributes["n"] for span in sink.spans if span.name == "request")
        bodies = [str(record.body) for record in sink.logs]
        records = Counter(int(body.split()[1]) for body in bodies if body.startswith("request "))
        totals: dict[str, float] = {}
        for point in sink.points:
            if point.name == "orders":
                instance = point.resource["service.instance.id"]
                totals[instance] = max(totals.get(instance, 0.0), point.value)
        return cls(spans, records, sum(totals.values()))

    @property
    def doubled(self) -> int:
        """Spans and records beyond the first of each."""
        return sum(n - 1 for counted in (self.spans, self.records) for n in counted.values())


def self_told(sink: OtlpSink, name: str) -> Counter[tuple[str, str]]:
    """The application's own account of what it gave up or sent again, by signal and cause, where there is any."""
    told: dict[tuple[str, str, str], float] = {}
    for point in sink.points:
        if point.name == name:
            key = (
                point.resource["service.instance.id"],
                point.attributes["otel_kit.signal"],
                point.attributes.get("otel_kit.cause", ""),
            )
            told[key] = max(told.get(key, 0.0), point.value)
    summed: Counter[tuple[str, str]] = Counter()
    for (_, signal, cause), value in told.items():
        if value:
            summed[signal, cause] += int(value)
    return summed


def dropped(sink: OtlpSink) -> dict[tuple[str, str], int]:
    """What the application says that it gave up."""
    return dict(self_told(sink, "otel_kit.dropped.items"))
