"""Adding what one process has counted to what its predecessor had: cumulative OTLP streams, point by point.

Only what can never fall is continued: monotonic sums and histograms. A non-monotonic sum (requests in flight, connections
of a pool) describes what a living process holds; the share of one that is gone is gone, and adding it to its successor's
would let every child that dies with a connection open raise the sum for good.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ScopeMetrics,
)

Point = NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint
#: Buckets on one side of zero; the SDK's own default (opentelemetry.sdk.metrics.view.ExponentialBucketHistogramAggregation).
MAX_BUCKETS: Final = 160
_MAX_INT: Final = 2**63 - 1
_MILLISECOND: Final = 1_000_000

_ScopeKey = bytes
# What may be added to each other: scope, name, unit, kind.
_MetricKey = tuple[_ScopeKey, str, str, str]
_StreamKey = tuple[bytes, ...]


@dataclass(slots=True)
class _Kept:
    """One metric of the base, its points by their attributes."""

    key: _MetricKey
    scope: ScopeMetrics
    metric: Metric
    points: dict[_StreamKey, Point]


class Totals:
    """The streams that a predecessor exported last.

    Args:
        exported: What it exported; anything but monotonic sums and histograms, both cumulative, is left out.
    """

    def __init__(self, exported: ExportMetricsServiceRequest) -> None:
        self._kept = [
            _Kept(_key(scope, metric), scope, metric, {_stream(point): point for point in points})
            for scope, metric, points in _continuable(exported)
        ]

    def add_to(self, request: ExportMetricsServiceRequest) -> None:
        """Add these totals to the streams in ``request``, in place.

        A stream that is here alone is exported on as it was, with the time of now. One that has changed its kind or its
        buckets begins anew.
        """
        if not self._kept or not request.resource_metrics:
            return
        group = request.resource_metrics[0]
        scopes = {_scope(scope): scope for scope in group.scope_metrics}
        present = {_key(scope, metric): metric for scope in group.scope_metrics for metric in scope.metrics}
        names = {key[:2] for key in present}
        now = time.time_ns()
        for kept in self._kept:
            metric = present.get(kept.key)
            if metric is None:
                if kept.key[:2] in names:
                    continue  # under this name there is something else now
                scope = scopes.get(kept.key[0])
                if scope is None:
                    scope = group.scope_metrics.add(scope=kept.scope.scope, schema_url=kept.scope.schema_url)
                    scopes[kept.key[0]] = scope
                metric = scope.metrics.add()
                metric.CopyFrom(kept.metric)
                for point in _points(metric):
                    point.time_unix_nano = now
                continue
            self._add(kept, _points(metric), now)

    @staticmethod
    def _add(kept: _Kept, points: Any, now: int) -> None:
        own = {_stream(point): point for point in points}
        for stream, base in kept.points.items():
            point = own.get(stream)
            if point is None:
                points.add().CopyFrom(base)
                points[-1].time_unix_nano = now
            elif _merge(base, point):
                point.start_time_unix_nano = base.start_time_unix_nano


def begin_earlier(request: ExportMetricsServiceRequest) -> None:
    """Set the start of every stream back by a millisecond, in place.

    Prometheus keeps milliseconds, and puts the zero from which a counter began before its first sample only if that is a
    later one. A child that counts to five and leaves at once would begin at five, and its increase would be none.
    """
    for _scope, _metric, points in _continuable(request):
        for point in points:
            point.start_time_unix_nano = max(0, point.start_time_unix_nano - _MILLISECOND)


def continuable(request: ExportMetricsServiceRequest) -> tuple[ExportMetricsServiceRequest, int]:
    """A copy of those streams of ``request`` that a successor continues, without exemplars, and how many they are."""
    copy = ExportMetricsServiceRequest()
    group = copy.resource_metrics.add()
    streams, last, scope_copy = 0, None, None
    for scope, metric, points in _continuable(request):
        if scope_copy is None or scope is not last:
            last, scope_copy = scope, group.scope_metrics.add(scope=scope.scope, schema_url=scope.schema_url)
        metric_copy = scope_copy.metrics.add()
        metric_copy.CopyFrom(metric)
        for point in _points(metric_copy):
            point.ClearField("exemplars")
        streams += len(points)
    return copy, streams


def _continuable(request: ExportMetricsServiceRequest) -> Iterator[tuple[ScopeMetrics, Metric, Any]]:
    for group in request.resource_metrics:
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                data = _data(metric)
                if getattr(data, "aggregation_temporality", None) != AGGREGATION_TEMPORALITY_CUMULATIVE:
                    continue
                if getattr(data, "is_monotonic", True):
                    yield scope, metric, data.data_points


def _data(metric: Metric) -> Any:
    kind = metric.WhichOneof("data")
    return getattr(metric, kind) if kind else None


def _points(metric: Metric) -> Any:
    return _data(metric).data_points


def _scope(scope: ScopeMetrics) -> _ScopeKey:
    return scope.scope.SerializeToString(deterministic=True) + b"\0" + scope.schema_url.encode()


def _key(scope: ScopeMetrics, metric: Metric) -> _MetricKey:
    data = _data(metric)
    shape = (getattr(data, "aggregation_temporality", ""), getattr(data, "is_monotonic", ""))
    return _scope(scope), metric.name, metric.unit, f"{metric.WhichOneof('data')} {shape}"


def _stream(point: Point) -> _StreamKey:
    return tuple(sorted(pair.SerializeToString(deterministic=True) for pair in point.attributes))


def _merge(base: Any, own: Any) -> bool:
    """Add ``base`` to ``own``; False, and nothing done, where the two cannot be added."""
    if isinstance(own, NumberDataPoint):
        _add_numbers(base, own)
        return True
    if isinstance(own, HistogramDataPoint):
        if base.explicit_bounds != own.explicit_bounds or len(base.bucket_counts) != len(own.bucket_counts):
            return False
        own.bucket_counts[:] = [one + other for one, other in zip(base.bucket_counts, own.bucket_counts, strict=True)]
    else:
        if base.zero_threshold != own.zero_threshold:
            return False
        _add_exponential(base, own)
    own.count += base.count
    if base.HasField("sum") and own.HasField("sum"):
        own.sum += base.sum
    else:
        own.ClearField("sum")
    for field, choose in (("min", min), ("max", max)):
        if base.HasField(field):
            value = getattr(base, field)
            setattr(own, field, choose(value, getattr(own, field)) if own.HasField(field) else value)
    return True


def _add_numbers(base: NumberDataPoint, own: NumberDataPoint) -> None:
    integers = "as_double" not in (base.WhichOneof("value"), own.WhichOneof("value"))
    total = (base.as_int or base.as_double) + (own.as_int or own.as_double)
    if integers and total <= _MAX_INT:
        own.as_int = int(total)
    else:
        own.as_double = float(total)


def _add_exponential(base: ExponentialHistogramDataPoint, own: ExponentialHistogramDataPoint) -> None:
    """Buckets of both at the coarser scale, coarser still where the two lie too far apart for `MAX_BUCKETS`.

    A bucket (b^i, b^(i+1)], b = 2^(2^-scale), lies within bucket ``i >> n`` at the scale that is n less
    (https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponential-scale).
    """
    scale = min(base.scale, own.scale)
    sides = {
        side: _counts(getattr(base, side), base.scale - scale) + _counts(getattr(own, side), own.scale - scale)
        for side in ("positive", "negative")
    }
    while any(_span(counts) > MAX_BUCKETS for counts in sides.values()):
        scale -= 1
        sides = {side: _coarser(counts, 1) for side, counts in sides.items()}
    own.scale = scale
    own.zero_count += base.zero_count
    for side, counts in sides.items():
        buckets = getattr(own, side)
        buckets.offset = min(counts, default=0)
        buckets.bucket_counts[:] = [counts[buckets.offset + i] for i in range(_span(counts))]


def _counts(buckets: ExponentialHistogramDataPoint.Buckets, shift: int) -> Counter[int]:
    return _coarser(Counter({buckets.offset + i: n for i, n in enumerate(buckets.bucket_counts) if n}), shift)


def _coarser(counts: Counter[int], shift: int) -> Counter[int]:
    found: Counter[int] = Counter()
    for index, count in counts.items():
        found[index >> shift] += count
    return found


def _span(indexes: Counter[int]) -> int:
    return max(indexes) - min(indexes) + 1 if indexes else 0
