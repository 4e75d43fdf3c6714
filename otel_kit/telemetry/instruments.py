"""How an instrument of the catalogue is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Observation

from otel_kit._version import __version__
from otel_kit.catalogue import Instrument

Observe = Callable[[], Iterable[tuple[float, dict[str, str]]]]


def _meter() -> metrics.Meter:
    return metrics.get_meter("otel_kit", __version__)


def counter(instrument: Instrument) -> Counter:
    """A counter of the catalogue."""
    return _meter().create_counter(instrument.name, instrument.unit, instrument.description)


def histogram(instrument: Instrument) -> Histogram:
    """A histogram of the catalogue, with its buckets."""
    return _meter().create_histogram(
        instrument.name,
        instrument.unit,
        instrument.description,
        explicit_bucket_boundaries_advisory=instrument.buckets or None,
    )


def _callback(observe: Observe) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _options: [Observation(value, attributes) for value, attributes in observe()]


def observed_gauge(instrument: Instrument, observe: Observe) -> None:
    """A gauge of the catalogue whose values are asked for at each export."""
    _meter().create_observable_gauge(instrument.name, [_callback(observe)], instrument.unit, instrument.description)


def observed_level(instrument: Instrument, observe: Observe) -> None:
    """An up-down counter of the catalogue whose values are asked for at each export."""
    _meter().create_observable_up_down_counter(
        instrument.name, [_callback(observe)], instrument.unit, instrument.description
    )


def observed_counter(instrument: Instrument, observe: Observe) -> None:
    """A counter of the catalogue whose totals are asked for at each export."""
    _meter().create_observable_counter(instrument.name, [_callback(observe)], instrument.unit, instrument.description)
