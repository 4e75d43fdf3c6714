"""For tests and demonstrations: an OTLP receiver inside the process, which can be made to misbehave."""

from otel_kit.testing.decode import LogRecord, MetricPoint, Span
from otel_kit.testing.faults import Script
from otel_kit.testing.sink import OtlpSink, Tls

__all__ = ["LogRecord", "MetricPoint", "OtlpSink", "Script", "Span", "Tls"]
