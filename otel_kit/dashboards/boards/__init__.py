"""One module per dashboard: which signals it shows, and where."""
