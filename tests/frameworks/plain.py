"""Plain functions with `otel_kit.job`: whoever calls one runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.frameworks.adapter import Framework

_CALLS = "A call runs at once, in its caller's process"


class Plain(Framework):
    """Scripts, and a loop that calls a job every second."""

    name = "plain"
    title = "Plain Python"
    app = "plain"
    system = ""
    queue = ""
    lacks: Mapping[str, str] = {
        "retry": "A call is one attempt",
        "delayed": _CALLS,
        "priority": _CALLS,
        "dead_broker": "There is no broker",
        "killed": "A process takes its jobs along: their deadline tells",
        "poison": "There are no messages",
        "unknown": "There are no messages",
        "depth": "There is no queue",
        "skew": "There is one clock",
    }

    def command(self) -> Sequence[str]:
        return [self.python(), "app.py"]

    def ready(self, output: str) -> bool:
        return "ready" in output


FRAMEWORKS = [Plain()]
