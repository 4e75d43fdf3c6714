"""`otel-kit jobs`: running, lost and recover, with a real Redis, real workers and real leases."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from rq import Queue
from rq.job import Job as RqJob

from otel_kit.integrations.redis_leases import RedisLeases, State
from otel_kit.jobs.lease_store import Fate, Lease
from otel_kit.jobs.model import Job
from otel_kit.telemetry.redaction import Redactor
from otel_kit.testing import OtlpSink
from tests.integration.conftest import Programs, eventually

#: Seconds that a lease lives in these tests.
TTL = 0.4
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(programs: Programs) -> Cli:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "otel_kit.cli.main", "jobs", *arguments],
            cwd=programs.directory, env=programs.environment(**environment), capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisLeases]:
    leases = RedisLeases(redis_url)
    yield leases
    leases.close()


def lease(job_id: str, framework: str = "rq", payload: str | None = None, owner: str = "dead", **job: object) -> Lease:
    described = Job("render", job_id, "default", "redis", **{"recoverable": True, **job})  # type: ignore[arg-type]
    return Lease(described, time.time() - 100, owner, "shop", "process 7 of worker on host-a", None, framework, payload)


def hold(store: RedisLeases, *leases: Lease, ttl: float = 60.0) -> list[Fate]:
    return store.hold([(each.member, each.to_text(Redactor())) for each in leases], ttl)


def lose(store: RedisLeases, *leases: Lease) -> None:
    """Have these declared lost, as live workers do."""
    hold(store, *leases, ttl=0.01)
    claimed: list[str] = []

    def claim() -> bool:
        claimed.extend(member for member, _details in store.claim("claimer", "shop", 100, TTL))
        return len(claimed) == len(leases)

    eventually(claim)
    store.settle("claimer", claimed)


def test_running_jobs_are_listed_with_their_age_and_whether_they_still_live(
    cli: Cli, store: RedisLeases, redis_url: str
) -> None:
    hold(store, lease("alive", owner="a", max_runtime=30.0))
    hold(store, lease("dead"), ttl=0.01)
    time.sleep(0.05)
    ran = cli("running", "--redis", redis_url)
    assert ran.returncode == 0, ran.stderr
    [alive] = [line for line in ran.stdout.splitlines() if "alive" in line]
    assert "process 7 of worker on host-a" in alive
    assert "1 m 4" in alive
    assert "30 s" in alive
    [dead] = [line for line in ran.stdout.splitlines() if "dead for" in line]
    assert "render" in dead


def test_names_are_shown_as_they_are(cli: Cli, store: RedisLeases, redis_url: str) -> None:
    name = "[bold]x[/nothing]\x1b[31m"
    lose(store, lease(name))
    hold(store, lease(name, owner="a"))
    for command in ("running", "lost", "recover"):
        ran = cli(command, "--redis", redis_url)
        assert ran.returncode == 0, ran.stderr
        assert "[bold]x[/nothing]" in ran.stdout
        assert "\x1b" not in ran.stdout


def test_without_anything_to_show_it_says_so(cli: Cli, redis_url: str) -> None:
    for command, said in (("running", "no job runs"), ("lost", "no job was lost"), ("recover", "no job was lost")):
        ran = cli(command, "--redis", redis_url)
        assert ran.returncode == 0
        assert said in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lost",), "expected --redis URL, or OTEL_KIT_LEASES=redis://"),
        (("lost", "--redis", "amqp://user:secret@host"), "expected redis://, rediss:// or unix://, not 'amqp://host'"),
        (("recover", "--redis", "redis://host", "--dead-for", "-1"), "'--dead-for'"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_right(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    ran = cli(*arguments)
    assert ran.returncode == 2
    assert said in " ".join(ran.stderr.split())
    assert "secret" not in ran.stderr


def test_a_redis_that_does_not_answer_is_named(cli: Cli) -> None:
    ran = cli("lost", "--redis", "redis://user:secret@127.0.0.1:1/0")
    assert ran.returncode == 1
    assert "--redis redis://127.0.0.1:1/0 does not answer" in ran.stderr
    assert "secret" not in ran.stderr


#: A plain RQ worker whose job never ends.
HANGING = """
import time
def render():
    time.sleep(600)
"""


@pytest.fixture
def cut_off(programs: Programs, redis_url: str) -> Iterator[RqJob]:
    """An RQ job whose worker was killed in the middle of it."""
    programs.write("hanging", HANGING)
    with redis.Redis.from_url(redis_url) as client:
        job = Queue(connection=client).enqueue("hanging.render", job_timeout=600)
        worker = programs.start(
            sys.executable, "-m", "rq.cli", "worker", "--url", redis_url, "--worker-class", "rq.SimpleWorker"
        )
        eventually(lambda: job.get_status() == "started", 30)
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(10)
        yield job


def test_a_lost_job_of_rq_is_run_again_when_that_is_asked_for(
    cli: Cli, store: RedisLeases, redis_url: str, cut_off: RqJob, sink: OtlpSink
) -> None:
    lose(store, lease(cut_off.id))
    shown = cli("recover", "--redis", redis_url, "--dead-for", "0")
    assert shown.returncode == 0, shown.stderr
    assert "would run it again (rq)" in shown.stdout
    assert "--apply does it" in shown.stdout
    assert cut_off.get_status() == "started"
    assert "not yet: --dead-for 60 s" in cli("recover", "--redis", redis_url).stdout

    # RQ's work horses outlive a worker that is killed: until its timeout nobody can tell whether this one does.
    refused = cli("recover", "--redis", redis_url, "--dead-for", "0", "--apply")
    assert "no: its work horse may have outlived its worker, for 5" in refused.stdout
    assert cut_off.get_status() == "started"

    apply = ("recover", "--redis", redis_url, "--dead-for", "0", "--apply", "--sure")
    done = cli(*apply, USER="alice", LOGNAME="alice")
    assert done.returncode == 0, done.stderr
    assert "done: put into queue default again" in done.stdout
    assert cut_off.get_status() == "queued"
    assert Queue(connection=cut_off.connection).job_ids == [cut_off.id]
    assert [each.state for each in store.lost()] == [State.REQUEUED]
    again = cli(*apply)
    assert "requeued" in again.stdout
    assert Queue(connection=cut_off.connection).job_ids == [cut_off.id]

    [audited] = [record for record in sink.logs if record.attributes.get("audit.action") == "job.recovered"]
    assert audited.attributes["actor"] == "alice"
    assert audited.attributes["job.id"] == cut_off.id
    [event] = [record for record in sink.logs if record.event_name == "job.recovered"]
    assert event.attributes["job.recovery"] == "requeued"
    points = [point for point in sink.points if point.name == "job.recovered"]
    assert [(point.value, point.attributes) for point in points][-1:] == [
        (1, {"job.name": "render", "job.recovery": "requeued"})
    ]


def test_a_job_that_came_back_or_runs_elsewhere_or_is_not_recoverable_is_left_alone(
    cli: Cli, store: RedisLeases, redis_url: str, cut_off: RqJob
) -> None:
    redelivered, unmarked = lease(cut_off.id), lease("x", recoverable=False)
    arq, dramatiq = lease("y", "arq"), lease("z", "dramatiq")
    lose(store, redelivered, unmarked, arq, dramatiq)
    hold(store, lease(cut_off.id, owner="another"))
    ran = cli("recover", "--redis", redis_url, "--dead-for", "0", "--apply", "--sure")
    assert ran.returncode == 0, ran.stderr
    verdicts = {line.split()[1]: line for line in ran.stdout.splitlines()[1:] if line.strip()}
    assert "no: it runs again, in another process" in verdicts[cut_off.id]
    assert "no: not marked as recoverable" in verdicts["x"]
    assert "arq runs it again by itself" in verdicts["y"]
    assert "Dramatiq runs it again by itself" in verdicts["z"]
    assert cut_off.get_status() == "started"


def test_what_came_back_between_the_look_and_the_act_is_left_alone(store: RedisLeases) -> None:
    returned, elsewhere = lease("r"), lease("e")
    lose(store, returned, elsewhere)
    assert store.begin_recovery(elsewhere) == ""
    assert store.begin_recovery(elsewhere) == "somebody else is requeueing it"
    store.end_recovery(elsewhere, done=False)
    assert store.begin_recovery(elsewhere) == ""
    store.end_recovery(elsewhere, done=True)
    assert store.begin_recovery(elsewhere) == "it was requeued already"
    # It comes back all the same, and is told.
    assert hold(store, elsewhere) == [Fate.REQUEUED]
    assert hold(store, returned) == [Fate.LOST]
    assert "has come back" in store.begin_recovery(returned)


def test_what_may_have_been_sent_is_not_sent_again_by_itself(
    cli: Cli, store: RedisLeases, redis_url: str, cut_off: RqJob
) -> None:
    lose(store, lease(cut_off.id))
    apply = ("recover", "--redis", redis_url, "--dead-for", "0", "--apply", "--sure")
    failed = cli(*apply, "--broker", "redis://127.0.0.1:1/0")
    assert failed.returncode == 1
    assert "failed: " in failed.stdout
    assert "do it --again" in failed.stdout
    assert [each.state for each in store.lost()] == [State.REQUEUEING]
    left = cli(*apply)
    assert left.returncode == 0, left.stderr
    assert cut_off.get_status() == "started"
    done = cli(*apply, "--again", "--id", cut_off.id)
    assert "done: put into queue default again" in done.stdout
    assert cut_off.get_status() == "queued"


def test_a_job_of_rq_that_needs_no_help_is_left_alone(cli: Cli, store: RedisLeases, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        waiting = Queue(connection=client).enqueue("hanging.render")
        lose(store, lease(waiting.id), lease("gone"))
        ran = cli("recover", "--redis", redis_url, "--dead-for", "0", "--apply")
    assert ran.returncode == 0, ran.stderr
    assert "no: it waits in its queue already" in ran.stdout
    assert "no: RQ does not know it any more" in ran.stdout
    assert {each.state for each in store.lost()} == {State.LOST}


CELERY = """
import os, time
import otel_kit
otel_kit.configure("worker")
from celery import Celery
app = Celery("shop", broker=os.environ["BROKER"])
app.conf.broker_connection_retry_on_startup = True

@app.task(name="render", otel_kit_recover=True, acks_late=os.environ["LATE"] == "1")
def render(path):
    if os.path.exists(path):
        open(path + ".done", "w").close()
    else:
        open(path, "w").close()
        time.sleep(600)
"""


@pytest.mark.parametrize("late", [False, True])
def test_a_lost_job_of_celery_is_sent_once_more_unless_its_broker_does_that(
    cli: Cli, programs: Programs, store: RedisLeases, redis_url: str, sink: OtlpSink, late: bool
) -> None:
    programs.write("shop", CELERY)
    path = programs.directory / "rendering"
    quick = {"BROKER": redis_url, "OTEL_KIT_LEASE_TTL": "1", "LATE": str(int(late))}
    options = ("--concurrency", "1", "--without-mingle", "--without-gossip")
    command = (sys.executable, "-m", "celery", "-A", "shop", "worker", *options)
    first = programs.start(*command, **quick)
    sent = programs.run(f"from shop import render; print(render.delay({str(path)!r}).id)", **quick)
    assert sent.returncode == 0, sent.stderr
    job_id = sent.stdout.split()[-1]
    eventually(path.exists, 30)
    eventually(lambda: [each.lease.job.id for each in store.running()] == [job_id])
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(10)
    programs.start(*command, **quick)
    eventually(lambda: [each.state for each in store.lost()] == [State.LOST], 30)
    done = cli("recover", "--redis", redis_url, "--dead-for", "0", "--apply")
    assert done.returncode == 0, done.stderr
    if late:
        assert "no: the broker still has its message" in done.stdout
        return
    assert "done: sent once more to queue celery" in done.stdout
    eventually((path.parent / "rendering.done").exists, 30)
    sink.wait_for(lambda s: [r for r in s.logs if r.event_name == "job.completed"])
    [completed] = [record for record in sink.logs if record.event_name == "job.completed"]
    assert completed.attributes["job.id"] == job_id
    [lost] = [record for record in sink.logs if record.event_name == "job.lost"]
    assert lost.attributes["job.id"] == job_id
