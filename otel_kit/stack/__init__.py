"""Start, stop and check the backends: through Docker where an engine answers, else as native builds."""
