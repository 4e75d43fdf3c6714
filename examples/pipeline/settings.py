"""Where the parts of the pipeline find each other. Everything comes from the environment; the defaults suit one machine."""

import os

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
DATABASE_URL = os.environ.get("DATABASE_URL", "sqlite:///notes.db")
GATEWAY_URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
DEPENDENCY_URL = os.environ.get("DEPENDENCY_URL", "http://127.0.0.1:8001")

# The store signs its download links with this. It shows up in URLs, and must never show up in telemetry.
STORE_TOKEN = os.environ.get("STORE_TOKEN", "local-store-token")

# Seconds between two runs of the "nightly" jobs: short, so that something is to be seen.
NIGHT_SECONDS = float(os.environ.get("NIGHT_SECONDS", "10"))

# psycopg speaks both ways under one name; SQLite needs another driver to be awaited.
ASYNC_DATABASE_URL = DATABASE_URL.replace("sqlite:", "sqlite+aiosqlite:", 1)
