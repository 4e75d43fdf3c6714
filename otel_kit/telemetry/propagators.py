"""What of a context crosses a process border over HTTP.

The trace does. Baggage comes in only within bounds, since anybody can send it, and does not go out: it may name users, and
a client does not know whose host it calls. Jobs carry baggage whole (`otel_kit.jobs.propagation`), inside our own queues.
"""

from __future__ import annotations

import logging
import os
import re
from importlib.metadata import entry_points
from typing import Any, Final

from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)

from otel_kit import catalogue

_logger = logging.getLogger(__name__)
_DEFAULT: Final = "tracecontext,baggage"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


class InboundBaggage(TextMapPropagator):
    """W3C baggage from outside: a well-formed ``request.id`` and what is neither ours nor an identity."""

    _w3c = W3CBaggagePropagator()

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """Take the header in, less ``user.id`` and any ``request.id`` that is none."""
        found = self._w3c.extract(carrier, context, getter)
        request_id = baggage.get_baggage(catalogue.REQUEST_ID, found)
        if request_id is not None and not _REQUEST_ID.fullmatch(str(request_id)):
            found = baggage.remove_baggage(catalogue.REQUEST_ID, found)
        return baggage.remove_baggage(catalogue.USER_ID, found)

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Send nothing."""

    @property
    def fields(self) -> set[str]:
        """The header's name."""
        return self._w3c.fields


def _load_propagate() -> Any:
    """`opentelemetry.propagate`, whose very import fails when OTEL_PROPAGATORS holds a name that nobody offers."""
    try:
        from opentelemetry import propagate
    except ValueError as error:
        wrong = os.environ.pop("OTEL_PROPAGATORS", "")
        try:
            from opentelemetry import propagate
        finally:
            os.environ["OTEL_PROPAGATORS"] = wrong
        _logger.error("otel-kit: OTEL_PROPAGATORS=%r is not accepted (%s). Unknown names are left out", wrong, error)
    return propagate


propagate = _load_propagate()


def install() -> None:
    """Make the configured propagators the process's, baggage within bounds among them."""
    offered = {entry.name: entry for entry in entry_points(group="opentelemetry_propagator")}
    names = [name.strip() for name in (os.environ.get("OTEL_PROPAGATORS") or _DEFAULT).split(",")]
    made: list[TextMapPropagator] = []
    for name in names:
        if name == "baggage":
            made.append(InboundBaggage())
        elif name in offered:
            made.append(offered[name].load()())
    propagate.set_global_textmap(CompositePropagator(made))
