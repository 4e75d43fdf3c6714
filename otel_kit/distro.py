"""Zero-code start: what `opentelemetry-instrument` and `otel-kit run` find through their entry points."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint
from typing import Any

from opentelemetry.instrumentation.distro import BaseDistro

from otel_kit.bootstrap import configure
from otel_kit.integrations import registry
from otel_kit.settings import ConfigurationError, read

_logger = logging.getLogger(__name__)


def _of_interest(record: logging.LogRecord) -> bool:
    return record.getMessage().partition(" ")[0] not in registry.SUPERSEDED


class Distro(BaseDistro):  # type: ignore[misc]
    """Loads instrumentations our way: ours before upstream's twin, and none that can stop the others."""

    def _configure(self, **_kwargs: Any) -> None:
        # Upstream's loader checks versions before it asks us, and complains about what ours has taken over.
        logging.getLogger("opentelemetry.instrumentation.auto_instrumentation._load").addFilter(_of_interest)

    def load_instrumentor(self, entry_point: EntryPoint, **_kwargs: Any) -> None:
        """Switch one instrumentation on, unless ours stands in for it."""
        if registry.wanted(entry_point.name, read({}).disabled_instrumentations):
            registry.instrument(entry_point)


class Configurator:
    """Starts the three signals from the environment. Upstream's loader wires the libraries afterwards."""

    def configure(self, **_kwargs: Any) -> None:
        """Called by upstream's loader, which asks for no more than this method."""
        try:
            configure(instrument=False)
        except ConfigurationError:  # no keyword is given here, so it cannot be; but a start must never fail for us
            _logger.exception("otel-kit: not configured")
