"""Writes the reference pages from the code that they describe: `make docs`."""

from __future__ import annotations

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


PAGES = {"settings.md": settings_page, "metrics.md": telemetry_page}


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page())


if __name__ == "__main__":
    main()
