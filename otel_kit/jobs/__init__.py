"""The job model, free of any framework: what a job is, how its context travels, how a run becomes telemetry."""
