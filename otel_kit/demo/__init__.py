"""`otel-kit demo`: the example system in examples/pipeline, started for real, and its telemetry shown.

`processes` starts and stops programs, `pipeline` knows the example's services, `story` finds what is worth telling in the
telemetry that arrived, `render` draws it. `embedded` puts them together without any backend, `stack` with all of them.
"""
