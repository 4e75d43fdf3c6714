"""The suite's application on RQ."""

import os
import signal
import time
from datetime import timedelta

import redis
from rq import Queue, Retry, SimpleWorker, SpawnWorker, Worker, get_current_job
from rq.cron import CronScheduler

import otel_kit
from otel_kit.jobs.decorator import job

otel_kit.configure()

QUEUE, PERIODIC = "suite", "periodic"
connection = redis.Redis.from_url(os.environ["BROKER"])
queue = Queue(QUEUE, connection=connection)


@job("succeed")
def succeed(number=0):
    return number


@job("fail")
def fail():
    raise ZeroDivisionError("on purpose")


@job("retry_once")
def retry_once():
    if get_current_job().retries_left:
        raise ConnectionError("not yet")


@job("slow")
def slow(seconds):
    time.sleep(seconds)


@job("die")
def die():
    time.sleep(1)  # what it has said so far is on its way
    os.kill(os.getpid(), signal.SIGKILL)


@job("nested")
def nested():
    publish("succeed")


@job("periodic")
def periodic():
    pass


FUNCTIONS = {each.__name__: each for each in (succeed, fail, retry_once, slow, die, nested, periodic)}


def publish(name, *arguments, delay=None, priority=None):
    function = FUNCTIONS.get(name, name)
    options = {"retry": Retry(max=1, interval=1)} if name == "retry_once" else {}
    if delay is None:
        queue.enqueue(function, *arguments, at_front=bool(priority), **options)
        return
    # RQ cuts a wanted start to whole seconds: this one is a whole second.
    time.sleep(-(time.time() + delay) % 1)
    queue.enqueue_in(timedelta(seconds=delay), function, *arguments, **options)


class Quiet:
    """A worker that says when it is ready and nothing else: what RQ logs in a run belongs to the run."""

    def bootstrap(self, *args, **kwargs):
        super().bootstrap(*args, **kwargs)
        print("worker is ready", flush=True)


class QuietWorker(Quiet, Worker):
    pass


class QuietSimpleWorker(Quiet, SimpleWorker):
    pass


class QuietSpawnWorker(Quiet, SpawnWorker):
    pass


def work(kind, queue=QUEUE):
    kinds = {"fork": QuietWorker, "simple": QuietSimpleWorker, "spawn": QuietSpawnWorker}
    worker = kinds[kind]([queue], connection=connection)
    worker.work(with_scheduler=True, logging_level="WARNING")


def cron():
    scheduler = CronScheduler(connection=connection, logging_level="WARNING")
    if os.environ.get("PERIODIC") == "1":
        scheduler.register(periodic, PERIODIC, interval=1)
    print("cron is ready", flush=True)
    scheduler.start()
