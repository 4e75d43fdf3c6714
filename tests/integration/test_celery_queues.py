"""Depth and age of Celery's queues, in a real Redis and through Kombu's passive declaration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from otel_kit import catalogue
from otel_kit.integrations.celery import queues
from otel_kit.integrations.celery.queues import SAMPLE, DeclaredQueue, RedisQueue, from_url
from otel_kit.jobs.queues import QueueState

Publish = Callable[..., None]


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    made = Celery("queues", broker=redis_url, set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def send(app: Celery) -> Publish:
    def publish(queue: str = "celery", *, sent: float | None = None, count: int = 1, **options: Any) -> None:
        headers = {catalogue.QUEUE_HEADER: queue}
        if sent is not None:
            headers[catalogue.ENQUEUED_AT_HEADER] = repr(sent)
        for _ in range(count):
            app.send_task("any", ("x" * 100,), queue=queue, headers=headers, **options)

    return publish


def read(app: Celery, name: str = "celery") -> QueueState:
    return RedisQueue(name, queues.client_of(app) or pytest.fail("no Redis"), app.conf.broker_transport_options).read()


def test_an_empty_queue_has_explicit_zeros(app: Celery) -> None:
    assert read(app) == QueueState(0, 0, 0, 0, None)


def test_the_lists_of_all_priorities_count(app: Celery, send: Publish) -> None:
    now = time.time()
    for priority in (0, 3, 6, 9):
        send(sent=now - 100 - priority, priority=priority)
    send(sent=now, count=2)
    send("other", sent=now - 1000)
    state = read(app)
    assert state.ready == 6
    assert state.oldest_ready_at == pytest.approx(now - 109, abs=0.01)


def test_the_age_counts_from_the_wanted_start(app: Celery, send: Publish) -> None:
    now = time.time()
    send(sent=now - 500, eta=datetime.now(UTC) - timedelta(seconds=100))
    assert read(app).oldest_ready_at == pytest.approx(now - 100, abs=1)


@pytest.mark.parametrize("sent", [None, "noon", "-5", "1e400"])
def test_an_age_that_cannot_be_known_is_not_made_up(app: Celery, send: Publish, sent: str | None) -> None:
    app.send_task("any", headers={catalogue.ENQUEUED_AT_HEADER: sent} if sent else {}, queue="celery")
    state = read(app)
    assert (state.ready, state.oldest_ready_at) == (1, None)


def take(app: Celery, queue: str, count: int) -> Any:
    """Deliver messages to a consumer that does not acknowledge them; they stay with it as long as its connection lives."""
    connection = app.connection_for_read()
    bound = connection.SimpleQueue(app.amqp.queues[queue])
    for _ in range(count):
        bound.get(timeout=5)
    return connection


def test_reserved_and_scheduled_jobs_count_for_their_own_queue(app: Celery, send: Publish) -> None:
    send(count=3)
    send("other", count=4)
    send("other", count=2, eta=datetime.now(UTC) + timedelta(hours=1))
    send("other", eta=datetime.now(UTC) - timedelta(hours=1))
    connections = [take(app, "celery", 2), take(app, "other", 7)]
    try:
        celery, other = read(app), read(app, "other")
    finally:
        for connection in connections:
            connection.release()
    assert (celery.ready, celery.reserved, celery.scheduled) == (1, 2, 0)
    assert (other.ready, other.reserved, other.scheduled) == (0, 5, 2)


def test_what_foreign_producers_have_sent_counts_too(app: Celery) -> None:
    for queue in ("celery", "celery", "other"):
        app.send_task("any", queue=queue)
    connections = [take(app, "celery", 2), take(app, "other", 1)]
    try:
        assert [read(app, name).reserved for name in ("celery", "other")] == [2, 1]
    finally:
        for connection in connections:
            connection.release()


def test_of_very_many_reserved_jobs_a_sample_tells_the_share(app: Celery, send: Publish, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        mine = f'[{{"headers": {{"{catalogue.QUEUE_HEADER}": "celery"}}}}, "", "celery"]'
        client.hset("unacked", mapping={str(n): mine if n % 4 == 0 else '[{}, "", "other"]' for n in range(4000)})
        client.hset("unacked", "large", '"' + "x" * 10_000_000 + '", "", "celery"]')
    began = time.monotonic()
    state = read(app)
    assert time.monotonic() - began < 0.5
    assert SAMPLE < 4000
    # Of 200 taken by chance a quarter, give or take: 5 standard deviations are 15 %.
    assert state.reserved == pytest.approx(1000, abs=650)


def test_reading_changes_nothing(app: Celery, send: Publish, redis_url: str) -> None:
    send(count=3)
    send("other", priority=9)
    with redis.Redis.from_url(redis_url) as client:

        def dump() -> dict[bytes, bytes]:
            return {key: client.dump(key) for key in client.scan_iter()}

        before = dump()
        read(app)
        read(app, "other")
        assert dump() == before


def test_a_transports_options_are_followed(redis_url: str) -> None:
    options = {"global_keyprefix": "shop:", "sep": ":", "priority_steps": list(range(10)), "unacked_key": "held"}
    with Celery("prefixed", broker=redis_url, set_as_current=False) as app:
        app.conf.broker_transport_options = options
        for priority in range(10):
            app.send_task("any", queue="celery", priority=priority)
        taken = take(app, "celery", 4)
        try:
            state = read(app)
        finally:
            taken.release()
        assert (state.ready, state.reserved) == (6, 4)


def test_a_topic_exchanges_queue_counts_what_is_routed_to_it(redis_url: str) -> None:
    with Celery("topics", broker=redis_url, set_as_current=False) as app:
        app.conf.task_queues = [Queue("media", Exchange("media", type="topic"), routing_key="media.#")]
        for _ in range(2):
            headers = {catalogue.QUEUE_HEADER: "media"}
            app.send_task("any", queue="media", routing_key="media.video", headers=headers)
        taken = take(app, "media", 1)
        try:
            state = read(app, "media")
        finally:
            taken.release()
        assert (state.ready, state.reserved) == (1, 1)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Celery]:
    """A broker that is no Redis."""
    with Celery("files", broker="filesystem://", set_as_current=False) as made:
        (tmp_path / "queue").mkdir()
        folders = {"data_folder_in": str(tmp_path / "queue"), "data_folder_out": str(tmp_path / "queue")}
        made.conf.broker_transport_options = {**folders, "control_folder": str(tmp_path / "control")}
        yield made


def test_other_brokers_say_how_many_are_ready(files: Celery) -> None:
    source = DeclaredQueue("celery", files.connection_for_read, "filesystem")
    assert source.read() == QueueState(0)
    for _ in range(3):
        files.send_task("any")
    assert source.read() == QueueState(3)


def test_a_queue_that_nobody_has_declared_is_empty_and_stays_undeclared(redis_url: str) -> None:
    """A passive declaration of it closes the channel."""
    with Celery("nobody", broker=redis_url, set_as_current=False) as app:
        source = DeclaredQueue("nobody", app.connection_for_read, "redis")
        assert [source.read(), source.read()] == [QueueState(0), QueueState(0)]
        app.send_task("any", queue="nobody")
        assert source.read() == QueueState(1)


def test_a_broker_that_does_not_answer_raises_and_is_asked_again() -> None:
    [source] = from_url("amqp://127.0.0.1:1//", ["celery"])
    for _ in range(2):
        with pytest.raises(OperationalError, match="refused"):
            source.read()


def test_queues_are_found_by_a_url(redis_url: str, app: Celery, send: Publish) -> None:
    send(count=2)
    first, second = from_url(redis_url, ["celery", "other"])
    assert [(source.system, source.name, source.read().ready) for source in (first, second)] == [
        ("redis", "celery", 2),
        ("redis", "other", 0),
    ]
    [amqp] = from_url("amqp://guest@localhost//", ["celery"])
    assert (amqp.system, amqp.name) == ("rabbitmq", "celery")
