"""The clock: `celery -A scheduler beat` queues what is due."""

import otel_kit
import settings
from tasks import app

otel_kit.configure("scheduler")

app.conf.beat_schedule = {
    "report on the notes": {"task": "nightly_report", "schedule": settings.NIGHT_SECONDS},
    "forget old notes": {"task": "forget_old_notes", "schedule": settings.NIGHT_SECONDS * 2},
}
