"""What the press does without an order: rq cron timetable.py"""

from jobs import clean_rollers
from rq import cron

import otel_kit

otel_kit.configure("timetable")

cron.register(clean_rollers, "posters", interval=5)
