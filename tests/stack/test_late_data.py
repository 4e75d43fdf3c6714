"""What is replayed hours after it happened is taken, at its own time."""

from __future__ import annotations

import json
import time
import uuid
from datetime import datetime

import httpx
import pytest

from otel_kit.stack.query import poll
from tests.stack import otlp
from tests.stack.conftest import Stack

HOUR = 3600.0
# The oldest that queues and spools keep.
OLDEST = 5 * HOUR


@pytest.fixture
def service() -> str:
    return f"late-{uuid.uuid4().hex[:8]}"


def test_spans_of_five_hours_ago_are_found_at_their_own_time(stack: Stack, service: str) -> None:
    then = time.time() - OLDEST
    span = otlp.span(start=then)
    stack.sender.send(otlp.traces(service, [otlp.span(), span]))

    assert poll(lambda: stack.query.tempo_trace(span.trace_id.hex()), 20)
    search = f'{{ resource.service.name = "{service}" }}'
    # TraceQL looks where Tempo believes the span to be: outside the slack it would have been dated to now.
    found = poll(lambda: stack.query.tempo_search(search, start=then - 60, end=then + 60), 40)
    assert [trace["traceID"] for trace in found] == [span.trace_id.hex().lstrip("0")]


def test_blocks_with_spans_of_five_hours_ago_begin_then(stack: Stack, service: str) -> None:
    then = time.time() - OLDEST
    stack.sender.send(otlp.traces(service, [otlp.span(start=then)]))
    blocks = stack.settings.data_dir / "tempo" / "blocks"

    def begins() -> list[float]:
        # Completes the block at once instead of after its ten minutes. Searches choose blocks by the times in their
        # metadata: one that was dated to now is not looked into at all.
        httpx.get(f"{stack.endpoints.tempo}/flush", trust_env=False)
        texts = [meta.read_text() for meta in blocks.glob("*/*/meta.json")]
        return [datetime.fromisoformat(json.loads(text)["startTime"]).timestamp() for text in texts if text]

    assert poll(lambda: any(abs(begin - then) < 5 for begin in begins()), 40, interval=1.0), begins()


def test_points_of_five_hours_ago_are_taken_after_fresh_ones(stack: Stack, service: str) -> None:
    then = time.time() - OLDEST
    stack.sender.send(otlp.metrics(service, [otlp.gauge("late.gauge", 2)]))
    query = f'late_gauge{{service_name="{service}"}}'
    assert poll(lambda: stack.query.prom_value(query), 20) == 2

    stack.sender.send(otlp.metrics(service, [otlp.gauge("late.gauge", 1, at=then)]))
    assert poll(lambda: stack.query.prom_value(query, at=then + 1), 20) == 1


def test_one_point_beyond_the_window_does_not_take_fresh_ones_with_it(stack: Stack, service: str) -> None:
    fresh, old = otlp.gauge("late.fresh", 1), otlp.gauge("late.old", 1, at=time.time() - 7 * HOUR)
    stack.sender.send(otlp.metrics(service, [old, fresh]))
    assert poll(lambda: stack.query.prom_value(f'late_fresh{{service_name="{service}"}}'), 20) == 1
    assert stack.query.prom_value(f'late_old{{service_name="{service}"}}', at=time.time() - 7 * HOUR + 1) is None


def test_a_counter_first_seen_at_five_has_an_increase_of_five(stack: Stack, service: str) -> None:
    started = time.time() - 60
    stack.sender.send(otlp.metrics(service, [otlp.counter("late.counter", 5, started=started)]))
    query = f'increase(late_counter_total{{service_name="{service}"}}[2m])'
    # Prometheus extrapolates to the ends of the range, so it is 5 and a little.
    assert poll(lambda: stack.query.prom_value(query), 20) == pytest.approx(5.5, abs=0.6)


def test_a_counter_that_started_days_ago_is_taken(stack: Stack, service: str) -> None:
    # Its zero lies far outside the out-of-order window, and must not have the point itself refused.
    started = time.time() - 72 * HOUR
    stack.sender.send(
        otlp.metrics(service, [otlp.counter("late.veteran", 5, started=started), otlp.gauge("late.mate", 1)])
    )
    assert poll(lambda: stack.query.prom_value(f'late_veteran_total{{service_name="{service}"}}'), 20) == 5
    assert stack.query.prom_value(f'late_mate{{service_name="{service}"}}') == 1


def test_replayed_points_of_a_counter_continue_it(stack: Stack, service: str) -> None:
    started = time.time() - OLDEST
    now = time.time()
    stack.sender.send(otlp.metrics(service, [otlp.counter("late.replay", 300, started=started, at=now)]))
    assert poll(lambda: stack.query.prom_value(f'late_replay_total{{service_name="{service}"}}'), 20) == 300
    replayed = [
        otlp.counter("late.replay", float(minute), started=started, at=started + 60 * minute)
        for minute in range(1, 300)
    ]
    stack.sender.send(otlp.metrics(service, replayed))
    query = f'increase(late_replay_total{{service_name="{service}"}}[1h])'
    middle = now - 2 * HOUR
    assert poll(lambda: (stack.query.prom_value(query, at=middle) or 0) > 50, 20)
    assert stack.query.prom_value(query, at=middle) == pytest.approx(60, abs=1.5)


@pytest.mark.parametrize("hours", [2, 5])
def test_lines_hours_behind_their_stream_are_taken(stack: Stack, service: str, hours: int) -> None:
    then = time.time() - hours * HOUR
    query = f'{{service_name="{service}"}}'
    stack.sender.send(otlp.logs(service, [otlp.record("fresh")]))
    assert poll(lambda: stack.query.loki_query(query), 20)
    stack.sender.send(otlp.logs(service, [otlp.record("late", at=then)]))
    found = poll(lambda: stack.query.loki_query(query, start=then - 60, end=then + 60), 20)
    assert [entry["line"] for entry in found] == ["late"]
