"""What of a context crosses a process border over HTTP.

The trace does. Baggage comes in only within bounds, since anybody can send it, and does not go out: it may name users, and
a client does not know whose host it calls. Jobs carry baggage whole (`otel_kit.jobs.propagation`), inside our own queues.
"""

from __future__ import annotations

import logging
import os
import re
from importlib.metadata import entry_points
from itertools import islice
from typing import Any, Final

from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, get_current
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
from otel_kit.telemetry.plain import encodable

_logger = logging.getLogger(__name__)
_DEFAULT: Final = "tracecontext,baggage"
#: Characters of a header that is read: twice what W3C baggage may have (8192 bytes), and far above any trace's.
_MAX_HEADER: Final = 16 * 1024
#: Headers of one name that are read.
_MAX_VALUES: Final = 64
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Texts(Getter[Any]):
    """Reads of a carrier what is a text of a header's size and can be written again; it may hold anything, and raises nothing.

    Headers of jobs come as JSON or pickles, and those of a server as whatever its framework makes of bytes. The propagators
    expect texts, and raise or log the whole header where it is none.
    """

    def __init__(self, getter: Getter[Any] = default_getter) -> None:
        self._getter = getter

    def get(self, carrier: Any, key: str) -> list[str] | None:
        """The header's values, None where there is none that is a text."""
        try:
            found = self._getter.get(carrier, key)
            values = [found] if isinstance(found, str) else list(islice(found or (), _MAX_VALUES))
            texts = [str.__str__(value) for value in values if isinstance(value, str)]
        except Exception:  # noqa: BLE001 - a carrier of somebody's own
            return None
        return [encodable(text) for text in texts if len(text) <= _MAX_HEADER] or None

    def keys(self, carrier: Any) -> list[str]:
        """The headers' names."""
        try:
            return [name for name in self._getter.keys(carrier) if isinstance(name, str)]
        except Exception:  # noqa: BLE001 - the same
            return []


class Propagators(CompositePropagator):
    """The configured ones, one after the other; none of them raises over what somebody has sent or put into baggage."""

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """Take in what can be read."""
        found = context if context is not None else get_current()
        texts: Getter[Any] = Texts(getter)
        for propagator in self._propagators:
            try:
                found = propagator.extract(carrier, found, texts)
            except Exception:  # noqa: BLE001 - what the others find stays
                _logger.debug("otel-kit: %s cannot read these headers", type(propagator).__qualname__)
        return found

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Send what can be written."""
        for propagator in self._propagators:
            try:
                propagator.inject(carrier, context, setter)
            except Exception:  # noqa: BLE001 - what the others write stays
                _logger.debug("otel-kit: %s cannot write these headers", type(propagator).__qualname__)


class InboundBaggage(TextMapPropagator):
    """W3C baggage from outside: a well-formed ``request.id`` and what is neither ours nor an identity."""

    _w3c = W3CBaggagePropagator()

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """Take the header in, less ``user.id`` and any ``request.id`` that is none."""
        found = self._w3c.extract(carrier, context, Texts(getter))
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
    propagate.set_global_textmap(Propagators(made))
