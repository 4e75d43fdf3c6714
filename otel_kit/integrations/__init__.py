"""One module per framework or library; each imports jobs/ or telemetry/, never another integration."""
