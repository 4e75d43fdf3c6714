"""Any object as telemetry can hold it, now, while it is as it was; whatever it is, nothing is raised."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from otel_kit.telemetry.limits import MAX_DEPTH, MAX_ITEMS, cut


def text_of(value: object) -> str:
    """``str(value)``, or words that say whose ``str()`` fails."""
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001
        return f"<{type(value).__qualname__}, whose str() raises {type(error).__qualname__}>"


def plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """What an attribute can hold; anything else as its text. Deep, long and cyclic values are cut, and say so."""
    if isinstance(value, str):
        return cut(value)
    if value is None or isinstance(value, (bool, int, float, bytes)):
        return value
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        if depth == 0:
            return "[cut: nested too deep]"
        try:
            if isinstance(value, Mapping):
                return {text_of(k): plain(v, depth - 1) for k, v in islice(value.items(), MAX_ITEMS)}
            items = [plain(item, depth - 1) for item in islice(value, MAX_ITEMS)]
        except Exception:  # noqa: BLE001  # changed by another thread while it was read
            return text_of(type(value))
        return items if len(value) <= MAX_ITEMS else [*items, f"[cut {len(value) - MAX_ITEMS} items]"]
    return cut(text_of(value))
