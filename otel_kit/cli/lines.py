"""How times and errors are written for people."""

from __future__ import annotations

from rich.markup import escape

from otel_kit.settings import without_credentials


def ago(seconds: float) -> str:
    """A span of time in its two largest units: ``2 h 5 m``."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    parts = [(whole // 86_400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    first = next(index for index, (number, _unit) in enumerate(parts) if number)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number)


def cause(error: BaseException) -> str:
    """An error in one line, without credentials."""
    text = " ".join(str(error).split()) or type(error).__name__
    return without_credentials(text)[:300]


def shown(text: str) -> str:
    """A name from outside, as a terminal may show it: neither markup nor control characters work."""
    return escape("".join(character if character.isprintable() else "?" for character in text))
