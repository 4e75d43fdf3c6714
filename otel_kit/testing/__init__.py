"""For tests and demonstrations: an OTLP receiver inside the process."""

from otel_kit.testing.decode import LogRecord, MetricPoint, Span
from otel_kit.testing.sink import OtlpSink

__all__ = ["LogRecord", "MetricPoint", "OtlpSink", "Span"]
