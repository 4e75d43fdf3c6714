"""The story drawn for a terminal. Texts from telemetry are never taken for markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from otel_kit import catalogue
from otel_kit.demo.checks import Check
from otel_kit.demo.processes import PartFailedError
from otel_kit.demo.story import JobRow, Node, forest, quantile
from otel_kit.telemetry.redaction import REDACTED
from otel_kit.testing import LogRecord, Span

COLOURS: Final[Mapping[str, str]] = {
    "bot": "magenta",
    "gateway": "cyan",
    "worker": "green",
    "scheduler": "blue",
    "store": "yellow",
}
_NARROW_BAR: Final = 20
_WIDE_BAR: Final = 32
_TIME_WIDTH: Final = 7
_DETAIL_WIDTH: Final = 34
#: Columns of a terminal from which on there is room for a column of details.
_WIDE: Final = 96
#: Outcomes that always have a column, under these titles.
_OUTCOMES: Final[Mapping[str, str]] = {"success": "ok", "retry": "retry", "failure": "failed"}


def heading(title: str, note: str = "") -> RenderableType:
    """A section's title with a rule behind it."""
    text = Text.assemble((title, "bold"), (f"  {note}", "dim") if note else "")
    return Padding(Rule(text, align="left", style="dim"), (1, 0, 0, 0))


def seconds(value: float | None) -> str:
    """A duration for people: ``850 us``, ``12 ms``, ``1.25 s``."""
    if value is None:
        return "-"
    if value < 0.0009995:
        return f"{value * 1e6:.0f} us"
    if value < 0.00995:
        return f"{value * 1000:.1f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def bar(start: float, end: float, *, width: int) -> str:
    """A bar from `start` to `end`, both shares (0 to 1) of the whole; at least one character long."""
    first = min(round(start * width), width - 1)
    last = min(max(round(end * width), first + 1), width)
    return " " * first + "━" * (last - first) + " " * (width - last)


def request_tree(spans: Sequence[Span], *, width: int) -> RenderableType:
    """One trace: who did what, under whom, when and for how long.

    Args:
        width: Columns that there are to draw in.
    """
    begin = min(span.start for span in spans)
    whole = max(max(span.end for span in spans) - begin, 1e-9)
    wide = width >= _WIDE
    bar_width = _WIDE_BAR if wide else _NARROW_BAR
    service_width = max(len(span.service) for span in spans)
    # What the columns of fixed width leave, with a space between each two.
    left = width - service_width - _TIME_WIDTH - bar_width - (4 + _DETAIL_WIDTH if wide else 3)
    table = Table.grid(padding=(0, 1))
    table.add_column("service", no_wrap=True, width=service_width)
    table.add_column("span", no_wrap=True, overflow="ellipsis", max_width=left)
    if wide:
        table.add_column("detail", no_wrap=True, overflow="ellipsis", width=_DETAIL_WIDTH)
    table.add_column("time", no_wrap=True, justify="right", width=_TIME_WIDTH)
    table.add_column("bar", no_wrap=True, width=bar_width)
    for root in forest(spans):
        for prefix, node in branches(root):
            span = node.span
            colour = COLOURS.get(span.service, "white")
            style = "bold red" if span.status == "ERROR" else ""
            name = Text.assemble((prefix, "dim"), (_without_path(span.name), style))
            cells = [Text(span.service, colour), name]
            if wide:
                cells.append(Text(", ".join(details(span)), "dim"))
            else:
                name.append("".join(f" {word}" for word in details(span)[:1]), "dim")
            cells.append(Text(seconds(span.end - span.start)))
            share = ((span.start - begin) / whole, (span.end - begin) / whole)
            cells.append(Text(bar(*share, width=bar_width), colour))
            table.add_row(*cells)
    return table


def branches(root: Node) -> list[tuple[str, Node]]:
    """A tree in lines: each node with the branches to draw before it."""
    lines: list[tuple[str, Node]] = [("", root)]

    def below(node: Node, indent: str) -> None:
        for child in node.children:
            last = child is node.children[-1]
            lines.append((indent + ("└ " if last else "├ "), child))
            below(child, indent + ("  " if last else "│ "))

    below(root, "")
    return lines


def details(span: Span) -> list[str]:
    """What matters most about a span, in a few words, the most telling first."""
    attributes = span.attributes
    if span.kind in ("CONSUMER", "PRODUCER"):
        words = [str(attributes.get(catalogue.JOB_NAME, ""))]
        if catalogue.JOB_WAIT in attributes:
            words.append(f"waited {seconds(float(attributes[catalogue.JOB_WAIT]))}")
        words.append(str(attributes.get(catalogue.JOB_OUTCOME, "")))
        return [word for word in words if word]
    if "http.response.status_code" in attributes:
        return [str(attributes["http.response.status_code"]), span.kind.lower()]
    system = attributes.get("db.system.name", attributes.get("db.system"))
    return [str(system)] if system else []


def job_table(rows: Sequence[JobRow]) -> RenderableType:
    """The jobs: how often, how they ended, how long they waited and took."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    others = sorted({outcome for row in rows for outcome, n in row.outcomes.items() if n and outcome not in _OUTCOMES})
    table.add_column("job", no_wrap=True)
    for title in ("runs", *_OUTCOMES.values(), *others, "wait p50", "p95", "time p50", "p95"):
        table.add_column(title, justify="right", no_wrap=True)
    styles = {"success": "green", "retry": "yellow", "failure": "red"}
    for row in rows:
        outcomes = [
            Text(str(row.outcomes.get(outcome, 0)), styles.get(outcome, "") if row.outcomes.get(outcome) else "dim")
            for outcome in (*_OUTCOMES, *others)
        ]
        times = [
            Text(seconds(quantile(values, share))) for values in (row.waits, row.durations) for share in (0.5, 0.95)
        ]
        table.add_row(Text(row.name, "bold"), Text(str(row.runs)), *outcomes, *times)
    return table


def log_lines(records: Sequence[LogRecord], *, width: int, limit: int = 16) -> RenderableType:
    """The records of one trace: when, who, how bad, what, and which job it belongs to."""
    begin = min((record.time for record in records), default=0.0)
    keys = (catalogue.JOB_NAME, catalogue.JOB_ID, catalogue.JOB_ATTEMPT)[0 if width >= _WIDE else 1 :]
    table = Table.grid(padding=(0, 1))
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("service", no_wrap=True)
    table.add_column("text", overflow="fold")
    for record in records[:limit]:
        text = Text()
        if record.severity not in ("INFO", "DEBUG", ""):
            text.append(f"{record.severity} ", "bold red" if record.severity.startswith(("ERR", "FATAL")) else "yellow")
        text.append(_one_line(str(record.body)))
        if record.event_name:
            text.append(f"  {record.event_name}", "bold dim")
        for key in keys:
            if key in record.attributes:
                text.append(f" {key}={_short(record.attributes[key])}", "dim")
        text.highlight_words([REDACTED], "reverse")
        table.add_row(
            Text(f"+{seconds(record.time - begin)}", "dim"), Text(record.service, COLOURS.get(record.service, "")), text
        )
    if len(records) > limit:
        table.add_row("", "", Text(f"and {len(records) - limit} more", "dim"))
    return table


def check_list(checks: Sequence[Check]) -> RenderableType:
    """The promises, kept or not, each with what was seen."""
    table = Table.grid(padding=(0, 1))
    for check in checks:
        mark = Text("✓", "green") if check.kept else Text("✗", "bold red")
        table.add_row(mark, Text(check.promise), Text(check.seen, "dim" if check.kept else "red"))
    return table


def failure(error: PartFailedError) -> RenderableType:
    """Which part failed, why, and the end of its log."""
    lines: list[RenderableType] = [Text.assemble(("✗ ", "bold red"), (error.part, "bold"), f" {error.reason}")]
    if error.log:
        lines.append(Text(f"the last lines of its log ({error.part}):", "dim"))
        lines.extend(Text(f"  {line}", "dim") for line in error.log)
    return Group(*lines)


def _without_path(name: str) -> str:
    # SQLite's databases are called by their path, of which only the end tells something.
    verb, _, target = name.partition(" ")
    return f"{verb} {target.rpartition('/')[2]}" if target.endswith(".db") else name


def _one_line(text: str, limit: int = 200) -> str:
    first = " ".join(text.split())
    return first if len(first) <= limit else first[: limit - 1] + "…"


def _short(value: object) -> str:
    # Enough of an id to tell it from the next; the whole would fill the line.
    text = str(value)
    return text[:8] if len(text) == 36 and text.count("-") == 4 else text
