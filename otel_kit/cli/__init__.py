"""The command line, `otel-kit`."""
