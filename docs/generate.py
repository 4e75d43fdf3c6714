"""Writes the reference pages from the code that they describe: `make docs`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from otel_kit.catalogue import INSTRUMENTS, UPSTREAM_INSTRUMENTS, Instrument, prometheus_name
from otel_kit.settings import OPTIONS, Settings

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from the code; edit that. -->\n\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def settings_page() -> str:
    """Every option: keyword, variable, default, what is accepted, meaning."""
    defaults = {field.name: field.default for field in fields(Settings)}
    rows = [
        [
            f"`{name}`",
            f"`{option.variable}`" if option.variable else "",
            _default(defaults[name]),
            option.accepts,
            option.meaning,
        ]
        for name, option in OPTIONS.items()
    ]
    return (
        NOTE
        + "# Settings\n\n"
        + "`otel_kit.configure()` takes each option as a keyword; a keyword wins over its environment variable. Durations\n"
        + "given as keywords are seconds. A wrong keyword raises `ConfigurationError`; a wrong variable is named in one log\n"
        + "line and the default is used, so that a typing error in a deployment does not keep a service from starting.\n\n"
        + _table(["keyword", "variable", "default", "accepted", "meaning"], rows)
        + "\nBeside these, the OpenTelemetry SDK reads all its own variables: samplers (`OTEL_TRACES_SAMPLER`), limits\n"
        + "(`OTEL_SPAN_*`, `OTEL_ATTRIBUTE_*`), batching (`OTEL_BSP_*`, `OTEL_BLRP_*`), TLS, compression, time-outs and\n"
        + "endpoints per signal (`OTEL_EXPORTER_OTLP_*`), propagators and resource attributes.\n"
    )


def _default(value: object) -> str:
    if value in (None, ()):
        return ""
    return f"`{','.join(value) if isinstance(value, tuple) else value}`"


def telemetry_page() -> str:
    """Every metric: name here, name in Prometheus, kind, unit, attributes, meaning."""
    return (
        NOTE
        + "# Metrics\n\n"
        + "Names follow the OpenTelemetry semantic conventions where these have one.\n\n## From otel-kit\n\n"
        + _instruments(INSTRUMENTS)
        + "\n## From the instrumentations that it wires\n\n"
        + _instruments(UPSTREAM_INSTRUMENTS)
    )


def _instruments(instruments: tuple[Instrument, ...]) -> str:
    rows = [
        [
            f"`{instrument.name}`",
            f"`{prometheus_name(instrument)}`",
            instrument.kind,
            instrument.unit,
            ", ".join(f"`{attribute}`" for attribute in instrument.attributes),
            instrument.description,
        ]
        for instrument in instruments
    ]
    return _table(["instrument", "in Prometheus", "kind", "unit", "attributes", "meaning"], rows)


def frameworks_page() -> str:
    """Framework by capability, as the common suite has seen it (`make capabilities`)."""
    seen = json.loads((HERE / "frameworks" / "capabilities.json").read_text())
    titles: list[str] = seen["frameworks"]
    reasons: list[str] = []

    def cell(found: bool | str | None) -> str:
        if isinstance(found, str):
            if found not in reasons:
                reasons.append(found)
            return f"no [{reasons.index(found) + 1}]"
        return {True: "yes", False: "**fails**", None: "?"}[found]

    rows = [[text, *(cell(found.get(title)) for title in titles)] for text, found in seen["capabilities"].items()]
    notes = "".join(f"{number}. {reason}\n" for number, reason in enumerate(reasons, 1))
    return (
        NOTE
        + "# Frameworks\n\n"
        + "One suite runs the same scenarios on each of them, with real workers and a real broker, and looks for the same\n"
        + "spans, metrics and events (`tests/frameworks`). This table is written from its results.\n\n"
        + _table(["", *titles], rows)
        + ("\n" + notes if notes else "")
        + "\nHow each is wired, what it records and what to watch out for: "
        + ", ".join(
            f"[{page.stem}]({page.name})"
            for page in sorted((HERE / "frameworks").glob("*.md"))
            if page.stem != "README"
        )
        + ".\n"
    )


PAGES = {"settings.md": settings_page, "metrics.md": telemetry_page, "frameworks/README.md": frameworks_page}


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page())


if __name__ == "__main__":
    main()
