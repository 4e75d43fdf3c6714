"""Where ours and upstream's instrument the same library, ours stands in for it and is never beside it."""

from __future__ import annotations

import importlib
import logging
from typing import Any

_logger = logging.getLogger(__name__)


class Takeover:
    """Takes one upstream instrumentor off and keeps it off, whichever comes first.

    Args:
        module: Where upstream's instrumentor lives; not installed is fine.
        name: Its class, a singleton as all of upstream's are.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name
        self._upstream: Any = None

    def begin(self) -> None:
        """Uninstrument upstream's if it is on, and make its later `instrument` do nothing."""
        try:
            self._upstream = getattr(importlib.import_module(self._module), self._name)()
        except ImportError:
            return
        if self._upstream.is_instrumented_by_opentelemetry:
            self._upstream.uninstrument()
        self._upstream.instrument = self._decline

    def end(self) -> None:
        """Give upstream's its method back."""
        if self._upstream is not None:
            vars(self._upstream).pop("instrument", None)
            self._upstream = None

    def _decline(self, **_kwargs: object) -> None:
        _logger.debug("otel-kit: %s stays off, otel-kit's own is on", self._name)
