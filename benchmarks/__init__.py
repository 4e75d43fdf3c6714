"""What instrumentation costs: bare, upstream's and ours, in turn in one run, so that only ratios matter."""
