"""Slots: who holds one, what the next holder goes on with, and what happens to files that are not as they should be."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.metrics import Meter, Observation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.util.types import AttributeValue

from otel_kit.telemetry import slots as module
from otel_kit.telemetry.slots import Slot, Slots
from otel_kit.testing import MetricPoint, decode

IDENTITY: dict[str, AttributeValue] = {
    "service.name": "shop",
    "host.name": "here",
    "process.pid": 1,
    "service.instance.id": "random",
}
Record = Callable[[Meter], object]


class Process:
    """What one process has counted, through the real SDK."""

    def __init__(self, *records: Record, view: View | None = None, delta: bool = False) -> None:
        temporality: dict[type, AggregationTemporality] = {Histogram: AggregationTemporality.DELTA} if delta else {}
        self.reader = InMemoryMetricReader(preferred_temporality=temporality)
        self.provider = MeterProvider([self.reader], Resource({**IDENTITY}), views=[view] if view else [])
        self.record(*records)

    def record(self, *records: Record) -> None:
        for record in records:
            record(self.provider.get_meter("shop"))

    def collect(self) -> ExportMetricsServiceRequest:
        collected = self.reader.get_metrics_data()
        assert collected is not None
        return encode_metrics(collected)


def add(number: float, name: str = "sold", **attributes: str) -> Record:
    return lambda meter: meter.create_counter(name).add(number, attributes)


def observe(*values: float, name: str = "took") -> Record:
    return lambda meter: [meter.create_histogram(name).record(value) for value in values]


def held(slots: Slots, identity: Mapping[str, AttributeValue] = IDENTITY) -> Slot:
    slot = slots.take(identity)
    assert slot is not None
    return slot


def live(directory: Path, process: Process) -> dict[str, MetricPoint]:
    """One process from beginning to end; what it exported."""
    slot = held(Slots(directory))
    request = slot.amend(process.collect())
    slot.release()
    return points(request)


@contextlib.contextmanager
def forked(work: Callable[[Callable[[str], None]], object]) -> Iterator[tuple[int, str]]:
    """A forked child in ``work(tell)``, its pid and what it told; it waits then, and is killed at the end of the block."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            work(lambda text: _ignore(os.write(tell, text.encode())))
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        yield child, os.read(ready, 100).decode()
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _ignore(_result: object) -> None:
    """A callback has nothing to return."""


def points(request: ExportMetricsServiceRequest) -> dict[str, MetricPoint]:
    found = {f"{p.name}{json.dumps(p.attributes) if p.attributes else ''}": p for p in decode.points(request)}
    assert len(found) == len(list(decode.points(request))), "a stream is in the request twice"
    return found


def only(found: dict[str, MetricPoint]) -> MetricPoint:
    [point] = found.values()
    return point


def test_the_next_holder_goes_on_with_the_totals_the_start_time_and_the_id(tmp_path: Path) -> None:
    first = only(live(tmp_path, Process(add(5))))
    second = only(live(tmp_path, Process(add(5))))
    third = only(live(tmp_path, Process(add(0.5))))
    assert [p.value for p in (first, second, third)] == [5, 10, 10.5]
    assert first.start == second.start == third.start
    assert first.time < second.time < third.time
    assert {p.resource["service.instance.id"] for p in (first, second, third)} == {
        first.resource["service.instance.id"]
    }
    assert first.resource.keys() == {"service.name", "host.name", "service.instance.id"}


def test_a_stream_begins_a_millisecond_before_its_first_point_at_least_and_keeps_to_that(tmp_path: Path) -> None:
    process, slot = Process(add(5), observe(1)), held(Slots(tmp_path))
    first, second = (points(slot.amend(process.collect())) for _ in range(2))
    for name, point in first.items():
        assert point.time - point.start >= 0.001
        assert second[name].start == point.start


def test_every_export_of_one_holder_adds_to_what_it_took_over_and_not_to_its_own_last(tmp_path: Path) -> None:
    live(tmp_path, Process(add(5)))
    process, slot = Process(add(1)), held(Slots(tmp_path))
    values = []
    for _ in range(3):
        request = slot.amend(process.collect())
        values.append(only(points(request)).value)
        process.record(add(1))
    assert values == [6, 7, 8]


def test_a_holder_that_dies_before_it_remembers_costs_only_what_it_counted_since(tmp_path: Path) -> None:
    live(tmp_path, Process(add(5)))
    held(Slots(tmp_path)).release()
    assert only(live(tmp_path, Process(add(1)))).value == 6


def test_streams_that_only_the_holder_before_had_are_exported_on_with_the_time_of_now(tmp_path: Path) -> None:
    before = live(tmp_path, Process(add(5, fruit="apple"), add(3, fruit="pear"), observe(1, 2), add(2, "returned")))
    after = live(tmp_path, Process(add(1, fruit="pear"), add(1, fruit="plum")))
    values = {name: point.value for name, point in after.items()}
    apple, pear, plum = (f'sold{{"fruit": "{fruit}"}}' for fruit in ("apple", "pear", "plum"))
    assert values == {apple: 5, pear: 4, plum: 1, "took": 3, "returned": 2}
    assert after[apple].start == before[apple].start
    assert after[plum].start > before[apple].start
    assert all(point.time > before[apple].time for point in after.values())
    # And on to the third, which has none of it.
    assert {name: point.value for name, point in live(tmp_path, Process(add(0, "nothing"))).items()} == {
        **values,
        "nothing": 0,
    }


def test_what_may_fall_and_what_is_a_delta_stays_as_it_is(tmp_path: Path) -> None:
    def gauges(meter: Meter) -> None:
        meter.create_up_down_counter("in.flight").add(3)
        meter.create_observable_gauge("queued", [lambda _options: [Observation(7)]])

    for _ in range(3):
        process = Process(gauges, observe(4), delta=True)
        found = live(tmp_path, process)
        assert {name: point.value for name, point in found.items()} == {"in.flight": 3, "queued": 7, "took": 4}
    # Nor are they handed on to a process that has none.
    assert live(tmp_path, Process(add(1))).keys() == {"sold"}


def test_histograms_are_added_bucket_by_bucket(tmp_path: Path) -> None:
    view = View(instrument_name="took", aggregation=ExplicitBucketHistogramAggregation([1, 10]))
    live(tmp_path, Process(observe(0.5, 5, 5), view=view))
    slot = held(Slots(tmp_path))
    request = slot.continued(Process(observe(0.25, 50), view=view).collect())
    [raw] = request.resource_metrics[0].scope_metrics[0].metrics[0].histogram.data_points
    assert (list(raw.bucket_counts), raw.count, raw.sum, raw.min, raw.max) == ([2, 2, 1], 5, 60.75, 0.25, 50)


@pytest.mark.parametrize(
    "before",
    [
        Process(observe(5, 5), view=View(instrument_name="took", aggregation=ExplicitBucketHistogramAggregation([3]))),
        Process(observe(5, 5), view=View(instrument_name="took", aggregation=ExponentialBucketHistogramAggregation())),
        Process(
            observe(5, 5),
            view=View(instrument_name="took", aggregation=ExplicitBucketHistogramAggregation(list(range(15)))),
        ),
        Process(lambda meter: meter.create_histogram("took", unit="s").record(5)),
        Process(add(5, "took")),
    ],
    ids=["buckets", "exponential", "bounds", "unit", "counter"],
)
def test_a_stream_that_has_changed_its_shape_begins_anew_with_its_own_start_time(
    tmp_path: Path, before: Process
) -> None:
    other = next(iter(live(tmp_path, before).values()))
    own = only(live(tmp_path, Process(observe(1))))
    assert (own.count, own.value, own.buckets[:2]) == (1, 1, (0, 1))
    assert own.start > other.start


def exponential(*values: float) -> Process:
    return Process(
        observe(*values),
        view=View(instrument_name="took", aggregation=ExponentialBucketHistogramAggregation(max_size=160)),
    )


@pytest.mark.parametrize(
    "spread", [(1, 1.001), (0.9, 1.1), (1e-3, 1e3), (1e-300, 1e300)], ids=["same scale", "near", "far", "farthest"]
)
def test_exponential_histograms_are_added_at_the_coarser_scale(tmp_path: Path, spread: tuple[float, float]) -> None:
    rng = random.Random(7)
    low, high = spread
    # The second holder's values lie elsewhere, at another scale: what it has alone is finer than both together.
    first = [rng.uniform(low, (low + high) / 2) * rng.choice((1, 1, -1)) for _ in range(300)] + [0.0, low]
    second = [rng.uniform(high * 0.99, high) for _ in range(200)] + [0.0]
    # The SDK's own answer for both together; it leaves negative values out of the buckets, and so do we.
    live(tmp_path, exponential(*first))
    request = held(Slots(tmp_path)).continued(exponential(*second).collect())
    merged = request.resource_metrics[0].scope_metrics[0].metrics[0].exponential_histogram.data_points[0]
    whole = (
        exponential(*first, *second)
        .collect()
        .resource_metrics[0]
        .scope_metrics[0]
        .metrics[0]
        .exponential_histogram.data_points[0]
    )
    assert (merged.count, merged.zero_count, merged.min, merged.max) == (
        whole.count,
        whole.zero_count,
        whole.min,
        whole.max,
    )
    assert merged.sum == pytest.approx(whole.sum)
    scale = min(merged.scale, whole.scale)
    for side in ("positive", "negative"):
        counts = [
            Counter(
                {
                    index: sum(n for i, n in enumerate(buckets.bucket_counts) if (buckets.offset + i) >> shift == index)
                    for index in {(buckets.offset + i) >> shift for i, n in enumerate(buckets.bucket_counts) if n}
                }
            )
            for buckets, shift in (
                (getattr(merged, side), merged.scale - scale),
                (getattr(whole, side), whole.scale - scale),
            )
        ]
        assert counts[0] == counts[1]
        assert len(getattr(merged, side).bucket_counts) <= 160
    # As fine as it can be, and no coarser.
    assert merged.scale >= whole.scale - 1


def test_exponential_histograms_with_another_idea_of_zero_are_not_added(tmp_path: Path) -> None:
    live(tmp_path, exponential(1, 2))
    request = exponential(5).collect()
    request.resource_metrics[0].scope_metrics[0].metrics[0].exponential_histogram.data_points[0].zero_threshold = 0.5
    assert only(points(held(Slots(tmp_path)).continued(request))).count == 1


def test_exemplars_are_of_the_process_that_saw_them(tmp_path: Path) -> None:
    request = Process(add(5)).collect()
    request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].exemplars.add(as_int=5)
    slot = held(Slots(tmp_path))
    assert len(only(points(slot.amend(request))).exemplars) == 1
    slot.release()
    assert live(tmp_path, Process(add(1, "other")))["sold"].exemplars == []


def test_whole_numbers_that_outgrow_their_type_go_on_as_floats(tmp_path: Path) -> None:
    live(tmp_path, Process(add(2**62)))
    assert only(live(tmp_path, Process(add(2**62)))).value == 2.0**63


def test_slots_of_processes_alive_at_once_differ_and_the_lowest_free_one_is_taken_next(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    first, second, third = (held(slots) for _ in range(3))
    assert len({first.id, second.id, third.id}) == 3
    third.release()
    first.release()
    again = [held(slots).id for _ in range(3)]
    assert again[0] == first.id
    assert again[1] == third.id
    assert again[2] not in {first.id, second.id, third.id}


@pytest.mark.parametrize(
    ("changed", "shared"),
    [
        ({"service.instance.id": "another", "process.pid": 2, "process.parent_pid": 3}, True),
        ({"service.version": "2"}, False),
        ({"host.name": "there"}, False),
        ({"deployment.environment.name": "test"}, False),
    ],
)
def test_only_processes_of_one_kind_follow_each_other(
    tmp_path: Path, changed: dict[str, AttributeValue], shared: bool
) -> None:
    slots = Slots(tmp_path)
    first = held(slots)
    first.release()
    assert (held(slots, {**IDENTITY, **changed}).id == first.id) is shared


def test_two_directories_have_no_id_in_common_nor_has_a_copy_on_another_host(tmp_path: Path) -> None:
    identifiers = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        identifiers.add(held(Slots(tmp_path / name)).id)
    for path in (tmp_path / "a").iterdir():
        path.rename(path.with_name(path.name.replace(module._digest(IDENTITY), module._digest({"host.name": "there"}))))
    identifiers.add(held(Slots(tmp_path / "a"), {"host.name": "there"}).id)
    assert len(identifiers) == 3


def test_a_killed_holder_frees_its_slot_at_once_and_its_totals_go_on(tmp_path: Path) -> None:
    def child(tell: Callable[[str], None]) -> None:
        slot = held(Slots(tmp_path))
        slot.amend(Process(add(5)).collect())
        tell(slot.id)

    with forked(child) as (_, identifier):
        assert held(Slots(tmp_path)).id != identifier
    following = held(Slots(tmp_path))
    assert following.id == identifier
    assert only(points(following.continued(Process(add(1)).collect()))).value == 6


def test_a_forked_child_leaves_the_slot_to_its_parent(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slot = held(slots)
    slot.amend(Process(add(5)).collect())

    def child(tell: Callable[[str], None]) -> None:
        slots.reset_after_fork()
        slot.amend(Process(add(1000)).collect())  # whoever still has it in hand does no harm
        slot.release()
        tell(held(slots).id)

    with forked(child) as (_, identifier):
        assert identifier != slot.id, "the child took what its parent holds"
        other = held(Slots(tmp_path))
        assert other.id not in {slot.id, identifier}
        # The child lives on, and holds nothing of the parent's.
        slot.release()
        following = held(Slots(tmp_path))
        assert following.id == slot.id
        assert only(points(following.continued(Process(add(1)).collect()))).value == 6


def test_a_lock_that_a_thread_held_at_the_fork_is_renewed(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slot = held(slots)

    def child(tell: Callable[[str], None]) -> None:
        signal.alarm(10)
        slots.reset_after_fork()
        slot.amend(Process(add(1)).collect())
        tell("done")

    slot._lock.acquire()
    with forked(child) as (_, told):
        assert told == "done"


def test_many_processes_at_once_never_share_a_slot_and_no_more_are_made_than_there_are_processes(
    tmp_path: Path,
) -> None:
    """Each takes and leaves fifty times; a second lock, on a file named after the id, would show two in one slot."""
    program = """
import fcntl, os, random, sys, time
from pathlib import Path
from otel_kit.telemetry.slots import Slots
slots = Slots(Path(sys.argv[1]))
for _ in range(50):
    slot = slots.take({"service.name": "shop"})
    with open(os.path.join(sys.argv[2], slot.id), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(random.random() / 1000)
    slot.release()
"""
    (tmp_path / "slots").mkdir()
    (tmp_path / "seen").mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "slots"), str(tmp_path / "seen")], stderr=subprocess.PIPE
        )
        for _ in range(6)
    ]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error.decode()
    assert len(list((tmp_path / "seen").iterdir())) <= 6


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def _age(seconds: float) -> Callable[[Path], None]:
    def age(path: Path) -> None:
        header = module._HEADER
        content = path.read_bytes()
        magic, saved_at, seal = header.unpack_from(content)
        path.write_bytes(header.pack(magic, saved_at - seconds, seal) + content[header.size :])

    return age


def _replace(content: bytes) -> Callable[[Path], None]:
    return lambda path: _ignore(path.write_bytes(content))


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        _cut,
        _flip,
        _age(module.MAX_AGE + 60),
        _age(-module.MAX_AGE - 60),
        _replace(b""),
        _replace(b"\0" * 5000),
        _replace(b"\0" * (module.MAX_STATE + 1)),
        _link,
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["gone", "cut", "flipped", "old", "of the future", "empty", "zeros", "huge", "link", "directory"],
)
def test_a_state_that_cannot_be_gone_on_with_is_begun_anew(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    before = only(live(tmp_path, Process(add(5))))
    [state] = tmp_path.glob("*.state")
    spoil(state)
    after = only(live(tmp_path, Process(add(1))))
    assert after.value == 1
    assert after.start > before.start
    assert after.resource == before.resource


def test_a_state_of_less_than_a_day_is_gone_on_with(tmp_path: Path) -> None:
    live(tmp_path, Process(add(5)))
    [state] = tmp_path.glob("*.state")
    _age(module.MAX_AGE - 60)(state)
    assert only(live(tmp_path, Process(add(1)))).value == 6


def test_a_slot_whose_name_is_lost_gets_another_and_does_not_go_on(tmp_path: Path) -> None:
    before = only(live(tmp_path, Process(add(5))))
    [lock] = tmp_path.glob("*.lock")
    lock.write_text("nonsense")
    after = only(live(tmp_path, Process(add(1))))
    assert after.value == 1
    assert after.resource["service.instance.id"] != before.resource["service.instance.id"]


@pytest.mark.parametrize("what", ["missing", "a file", "a link in the lock's place"])
def test_a_directory_that_cannot_be_used_gives_no_slot(tmp_path: Path, what: str) -> None:
    directory = tmp_path / "slots"
    if what == "a file":
        directory.write_text("")
    elif what == "a link in the lock's place":
        directory.mkdir()
        (directory / f"{module._digest(IDENTITY)}-0.lock").symlink_to(tmp_path / "target")
    assert Slots(directory).take(IDENTITY) is None
    assert not (tmp_path / "target").exists()


def test_no_more_slots_are_made_than_the_limit_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SLOTS", 3)
    slots = Slots(tmp_path)
    assert [slots.take(IDENTITY) is None for _ in range(5)] == [False, False, False, True, True]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Every write beyond a few bytes fails with an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_a_disk_that_is_full_is_said_once_and_the_next_holder_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    live(tmp_path, Process(add(5)))
    process, slot = Process(add(1)), held(Slots(tmp_path))
    request.getfixturevalue("full_disk")
    exported = []
    for _ in range(2):
        exported.append(slot.continued(process.collect()))
        slot.remember(exported[-1])
    slot.release()
    assert [only(points(one)).value for one in exported] == [6, 6]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    # Not with the 5 that was there before: 6 was seen, so a 5 would count again.
    assert only(points(held(Slots(tmp_path)).continued(Process(add(1)).collect()))).value == 1


@pytest.mark.parametrize("limit", ["MAX_STREAMS", "MAX_STATE"])
def test_totals_beyond_the_limits_are_not_kept_and_this_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(module, limit, {"MAX_STREAMS": 3, "MAX_STATE": 220}[limit])
    live(tmp_path, Process(add(1, fruit="a"), add(1, fruit="b")))
    assert caplog.records == []
    process, slot = Process(add(1, fruit="c"), add(1, fruit="d")), held(Slots(tmp_path))
    for _ in range(2):
        request = slot.amend(process.collect())
        assert len(points(request)) == 4
    slot.release()
    assert len(caplog.records) == 1
    assert live(tmp_path, Process(add(1, fruit="a"))).keys() == {'sold{"fruit": "a"}'}


def test_files_are_of_this_user_alone_and_only_a_lock_and_a_state_are_left(tmp_path: Path) -> None:
    live(tmp_path, Process(add(5)))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".state"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_holder_killed_while_it_writes_leaves_one_whole_state_or_the_other(tmp_path: Path) -> None:
    count = [add(1, key=str(number)) for number in range(300)]

    def write_for_ever(tell: Callable[[str], None]) -> None:
        process, slot = Process(*count), held(Slots(tmp_path))
        while True:
            slot.amend(process.collect())
            tell("!")
            process.record(*count)

    for _ in range(5):
        with forked(write_for_ever):
            time.sleep(random.uniform(0.02, 0.1))
        slot = held(Slots(tmp_path))
        values = {point.value for point in points(slot.continued(Process(add(0, "probe")).collect())).values()}
        slot.release()
        assert len(values - {0}) == 1, "neither the one nor the other"


def test_slots_that_nobody_has_held_for_a_day_are_removed(tmp_path: Path) -> None:
    yesterday = time.time() - module.MAX_AGE - 60
    slots = Slots(tmp_path)
    old, kept = ({**IDENTITY, "service.version": version} for version in ("1", "2"))
    for identity in (old, kept):
        slot = held(slots, identity)
        slot.amend(Process(add(5)).collect())
        if identity is old:
            slot.release()
    for path in tmp_path.iterdir():
        os.utime(path, (yesterday, yesterday))
    held(slots, {**IDENTITY, "service.version": "3"})
    left = {path.name.partition("-")[0] for path in tmp_path.iterdir()}
    # What is held stays, however old its file is.
    assert left == {module._digest(kept), module._digest({**IDENTITY, "service.version": "3"})}


def test_a_lock_file_that_was_removed_while_it_was_waited_for_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    path = tmp_path / f"{module._digest(IDENTITY)}-0.lock"

    def removed_meanwhile(descriptor: int, operation: int) -> None:
        path.unlink(missing_ok=True)
        monkeypatch.undo()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    slot = held(Slots(tmp_path))
    assert slot._descriptor is not None
    assert os.fstat(slot._descriptor).st_nlink == 1
