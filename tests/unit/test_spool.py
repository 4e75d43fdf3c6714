"""The spool: what is kept, in what bound, who may replay it, and what becomes of files that went bad.

Where a claim is about processes, these are real ones: programs that a test starts, and ends with SIGKILL.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from otel_kit.telemetry.payload import Cause, Payload, Signal
from otel_kit.telemetry.spool import DiskSpool, MemorySpool, SpoolUnusable, Store, default_root, files, open_root
from otel_kit.telemetry.spool import folder as folder_module
from otel_kit.telemetry.spool.files import Corrupt, Entry
from otel_kit.telemetry.spool.folder import CORRUPT_KEPT, Folder, folder_name
from otel_kit.telemetry.spool.lock import FileLock

NOW = 1_800_000_000.0
SERVICE = "shop/api"
STRANGER = 65534


class Drops:
    """What was given up, as `OnDrop` is told."""

    def __init__(self) -> None:
        self.items: Counter[tuple[Signal, Cause]] = Counter()

    def __call__(self, signal: Signal, cause: Cause, items: int) -> None:
        self.items[signal, cause] += items


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def drops() -> Drops:
    return Drops()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return open_root(tmp_path / "spool")


@pytest.fixture
def home(root: Path) -> Path:
    """The service's folder, once there is one."""
    return root / folder_name(SERVICE)


def payload(
    number: int = 0, *, signal: Signal = "traces", items: int = 1, size: int = 100, created: float = NOW
) -> Payload:
    """A payload that does not compress: its file is as long as its body and a little more."""
    body = number.to_bytes(4) + random.Random(number).randbytes(size - 4)
    return Payload(signal, body, items, created + number / 1000)


def number_of(kept: Payload | None) -> int | None:
    return None if kept is None else int.from_bytes(kept.body[:4])


def all_of(store: Store, *, settle: bool = True) -> list[int]:
    """The numbers of what a claim hands out, in that order."""
    numbers = []
    claim = store.claim()
    if claim is not None:
        with claim:
            while (kept := claim.next()) is not None:
                numbers.append(int.from_bytes(kept.body[:4]))
                if settle:
                    claim.done()
    return numbers


def visible(home: Path) -> list[Path]:
    return sorted(path for path in home.iterdir() if path.suffix == ".otlp" and not path.name.startswith("."))


def length(home: Path) -> int:
    return sum(path.stat().st_size for path in visible(home))


@pytest.fixture
def disk(root: Path, drops: Drops, clock: Clock) -> Callable[..., DiskSpool]:
    def make(signal: Signal = "traces", fingerprint: str = "ab12", service: str = SERVICE, **options: Any) -> DiskSpool:
        given: dict[str, Any] = {"on_drop": drops, "clock": clock} | options
        return DiskSpool(root, service, signal, fingerprint, **given)

    return make


@pytest.fixture(params=["disk", "memory"])
def make(
    request: pytest.FixtureRequest, disk: Callable[..., DiskSpool], drops: Drops, clock: Clock
) -> Callable[..., Any]:
    def in_memory(**options: Any) -> MemorySpool:
        return MemorySpool("traces", on_drop=drops, clock=clock, **options)

    return disk if request.param == "disk" else in_memory


# What both do


def test_payloads_come_back_whole_and_oldest_first(make: Callable[..., Store]) -> None:
    store = make()
    for number in (3, 1, 2):
        assert store.put(payload(number, items=number))
    claim = store.claim()
    assert claim is not None
    with claim:
        for number in (1, 2, 3):
            assert claim.next() == payload(number, items=number)
            claim.done()
        assert claim.next() is None
    assert store.claim() is None
    assert store.size() == 0


def test_those_of_one_instant_come_back_in_the_order_of_their_coming(make: Callable[..., Store]) -> None:
    store = make()
    for number in range(20):
        store.put(Payload("traces", payload(number).body, 1, NOW))
    assert all_of(store) == list(range(20))


def test_what_was_not_settled_stays(make: Callable[..., Store]) -> None:
    store = make()
    for number in range(3):
        store.put(payload(number))
    claim = store.claim()
    assert claim is not None
    assert number_of(claim.next()) == 0
    claim.done()
    assert number_of(claim.next()) == 1
    claim.close()
    claim.done()  # too late: it is no longer ours
    assert claim.next() is None
    assert all_of(store) == [1, 2]


def test_a_claim_hands_out_what_comes_while_it_lasts(make: Callable[..., Store]) -> None:
    store = make()
    store.put(payload(5))
    claim = store.claim()
    assert claim is not None
    with claim:
        assert number_of(claim.next()) == 5
        store.put(payload(6))
        store.put(payload(4))
        assert [number_of(claim.next()) for _ in range(3)] == [4, 6, None]


def test_of_many_threads_one_claims(make: Callable[..., Store]) -> None:
    store = make()
    store.put(payload())
    start, got = threading.Barrier(8), []

    def run() -> None:
        start.wait(10)
        got.append(store.claim())

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    (claim,) = [claim for claim in got if claim is not None]
    assert store.claim() is None
    claim.close()
    claim.close()
    again = store.claim()
    assert again is not None
    claim.close()  # the first one's: takes nothing from the second
    assert store.claim() is None
    again.close()


def test_expired_payloads_are_removed_and_counted(make: Callable[..., Store], drops: Drops, clock: Clock) -> None:
    store = make(max_age=100)
    store.put(payload(0, items=3))
    store.put(payload(1, items=4, created=NOW + 50))
    clock.now = NOW + 101
    assert all_of(store) == [1]
    assert drops.items == {("traces", Cause.EXPIRED): 3}


def test_what_is_too_old_makes_room_before_anything_else_does(
    make: Callable[..., Store], drops: Drops, clock: Clock
) -> None:
    store = make(max_age=100, limit=2500)
    store.put(payload(0, size=1000))
    store.put(payload(1, size=1000, created=NOW + 50))
    clock.now = NOW + 101
    assert store.put(payload(2, size=1000, created=NOW + 101))
    assert all_of(store) == [1, 2]
    assert drops.items == {("traces", Cause.EXPIRED): 1}


def test_a_payload_above_the_limit_is_refused_at_nobodys_cost(make: Callable[..., Store], drops: Drops) -> None:
    store = make(limit=1000)
    assert store.put(payload(0))
    assert not store.put(payload(1, size=1001))
    assert all_of(store) == [0]
    assert not drops.items


def test_when_full_the_oldest_goes_and_is_counted(make: Callable[..., Store], drops: Drops) -> None:
    store = make(limit=5000)
    for number in range(7):
        assert store.put(payload(number, items=number + 1, size=1000))
        assert store.size() <= 5000
    kept = all_of(store)
    assert kept == list(range(7 - len(kept), 7))
    assert len(kept) >= 4
    assert drops.items == {("traces", Cause.SPOOL_FULL): sum(range(1, 8 - len(kept)))}


def test_what_is_being_replayed_is_not_counted_as_given_up(make: Callable[..., Store], drops: Drops) -> None:
    store = make(limit=2500)
    store.put(payload(0, size=1000))
    store.put(payload(1, size=1000))
    claim = store.claim()
    assert claim is not None
    with claim:
        assert number_of(claim.next()) == 0
        assert store.put(payload(2, size=1000))
        assert drops.items == {("traces", Cause.SPOOL_FULL): 1}
        assert not store.put(payload(3, size=2000)), "no room but what the replay holds"
        claim.done()
    assert all_of(store) == []
    assert drops.items == {("traces", Cause.SPOOL_FULL): 2}


def test_changed_says_once_that_something_came(make: Callable[..., Store]) -> None:
    store = make()
    assert not store.changed()
    store.put(payload(0))
    assert store.changed()
    assert not store.changed()
    store.put(payload(1))
    assert store.changed()
    assert not store.changed()


# Names


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(max_size=300) | st.sampled_from(["..", ".", "a/b", "/etc", "A", "a", "-", "\ud800"]), unique=True)
)
def test_any_service_has_a_folder_of_its_own(services: list[str]) -> None:
    names = [folder_name(service) for service in services]
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        assert Path("/x", name).resolve() == Path("/x") / name, "one component, and below"
        assert len(name) <= 60
        assert name.isascii()
        assert not name.startswith(".")


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(service=st.text(max_size=400), body=st.binary(max_size=3000), items=st.integers(0, 2**32 - 1))
def test_any_payload_of_any_service_comes_back_as_it_was(
    disk: Callable[..., DiskSpool], service: str, body: bytes, items: int
) -> None:
    store, kept = disk(service=service), Payload("traces", body, items, NOW + 0.123456)
    assert store.put(kept)
    claim = store.claim()
    assert claim is not None
    with claim:
        assert claim.next() == kept
        claim.done()
        assert claim.next() is None


def test_services_whose_names_look_alike_share_nothing(disk: Callable[..., DiskSpool]) -> None:
    disk(service="shop/api").put(payload())
    assert disk(service="shop-api").claim() is None
    assert disk(service="Shop/API").claim() is None


def test_a_fingerprint_that_is_no_name_is_refused(disk: Callable[..., DiskSpool]) -> None:
    for bad in ("", "../x", "a.b", "é", "x" * 65):
        with pytest.raises(ValueError, match="fingerprint"):
            disk(fingerprint=bad)


def test_equal_process_ids_and_times_do_not_meet_in_one_name(disk: Callable[..., DiskSpool]) -> None:
    # As in two containers, where the process has number 1.
    one, other = disk(), disk()
    assert one.put(payload(1))
    assert other.put(payload(1))
    assert all_of(one) == [1, 1]


# Whose files


def test_other_signals_and_destinations_are_never_replayed(disk: Callable[..., DiskSpool], home: Path) -> None:
    mine = disk("traces", "ab12")
    others = [disk("logs", "ab12"), disk("metrics", "ab12"), disk("traces", "ab1"), disk("traces", "2")]
    for number, other in enumerate(others):
        signal: Signal = ("logs", "metrics", "traces", "traces")[number]
        other.put(payload(number, signal=signal))
    assert mine.claim() is None
    assert mine.size() == 0
    mine.put(payload(9))
    assert mine.size() == next(path for path in visible(home) if ".traces.ab12." in path.name).stat().st_size
    assert all_of(mine) == [9]
    assert [all_of(other) for other in others] == [[0], [1], [2], [3]]


def test_claims_of_different_signals_and_destinations_do_not_hinder_each_other(disk: Callable[..., DiskSpool]) -> None:
    stores = [disk("traces"), disk("logs"), disk("traces", "cd34")]
    stores[0].put(payload())
    stores[1].put(payload(signal="logs"))
    stores[2].put(payload())
    claims = [store.claim() for store in stores]
    assert None not in claims
    for claim in claims:
        assert claim is not None
        claim.close()


def test_expired_files_of_all_are_swept_by_whoever_writes(
    disk: Callable[..., DiskSpool], home: Path, drops: Drops, clock: Clock
) -> None:
    disk("logs", "old").put(payload(0, signal="logs", items=5))
    disk("metrics", "ab12").put(payload(0, signal="metrics", items=6))
    clock.now = NOW + 5 * 3600 + 1
    assert disk("traces").put(payload(1, created=clock.now))
    assert len(visible(home)) == 1
    assert drops.items == {("logs", Cause.EXPIRED): 5, ("metrics", Cause.EXPIRED): 6}


def test_a_claim_passes_over_what_another_process_did_away_with(
    disk: Callable[..., DiskSpool], home: Path, drops: Drops, clock: Clock
) -> None:
    store = disk()
    for number in range(4):
        store.put(payload(number))
    claim = store.claim()
    assert claim is not None
    with claim:
        assert number_of(claim.next()) == 0
        visible(home)[1].unlink()
        assert number_of(claim.next()) == 2
        clock.now = NOW + 5 * 3600 + 1
        disk().put(payload(9, created=clock.now))
        assert drops.items == {("traces", Cause.EXPIRED): 3}
        assert number_of(claim.next()) == 9
    assert drops.items == {("traces", Cause.EXPIRED): 3}, "once is enough"


def test_claims_leave_no_lock_files_behind(disk: Callable[..., DiskSpool], home: Path) -> None:
    for fingerprint in ("a", "b", "c"):
        store = disk(fingerprint=fingerprint)
        store.put(payload())
        assert all_of(store) == [0]
    assert [path.name for path in (home / "locks").iterdir()] == ["put"]


# The bound


def test_a_flood_of_logs_leaves_the_traces_alone(disk: Callable[..., DiskSpool], drops: Drops, home: Path) -> None:
    limit = 40_000
    traces, metrics, logs = (disk(signal, limit=limit) for signal in ("traces", "metrics", "logs"))
    for number in range(8):
        assert traces.put(payload(number, size=1000))
        assert metrics.put(payload(number, signal="metrics", size=500))
    for number in range(200):
        assert logs.put(payload(number, signal="logs", size=1000))
        assert length(home) <= limit
    assert set(drops.items) == {("logs", Cause.SPOOL_FULL)}
    assert all_of(traces) == all_of(metrics) == list(range(8))
    kept = all_of(logs)
    assert kept == list(range(200 - len(kept), 200))
    assert drops.items["logs", Cause.SPOOL_FULL] + len(kept) == 200


def test_other_destinations_count_into_the_bound(disk: Callable[..., DiskSpool], drops: Drops, home: Path) -> None:
    old, new = disk(fingerprint="01d", limit=5000), disk(fingerprint="ee", limit=5000)
    for number in range(4):
        old.put(payload(number, size=1000))
    for number in range(4, 8):
        new.put(payload(number, size=1000))
        assert length(home) <= 5000
    assert all_of(new) == [4, 5, 6, 7]
    assert drops.items["traces", Cause.SPOOL_FULL] == 4


def test_files_that_came_behind_our_back_count_into_the_bound(disk: Callable[..., DiskSpool], home: Path) -> None:
    store = disk(limit=10_000)
    store.put(payload(0, size=3000))
    (first,) = visible(home)
    time.sleep(0.02)  # a tick of the file system's clock
    for number in range(2):
        shutil.copy(first, home / first.name.replace(".1.traces.", f"{number}.1.traces."))
    store.put(payload(9, size=3000))
    assert length(home) <= 10_000
    assert len(visible(home)) == 3


def test_many_small_files_do_not_make_every_put_look_at_all_of_them(
    disk: Callable[..., DiskSpool], monkeypatch: pytest.MonkeyPatch, drops: Drops
) -> None:
    looks = 0
    sweep = Folder._sweep

    def counted(self: Folder, dropped: folder_module.Dropped) -> Any:
        nonlocal looks
        looks += 1
        return sweep(self, dropped)

    monkeypatch.setattr(Folder, "_sweep", counted)
    stores = [disk(limit=100_000), disk(limit=100_000)]
    for number in range(400):
        assert stores[number % 2].put(payload(number))
    assert looks == 1, "below the bound only the first looks"
    for number in range(400, 1200):
        assert stores[number % 2].put(payload(number))
    assert drops.items["traces", Cause.SPOOL_FULL] > 300
    assert looks < drops.items["traces", Cause.SPOOL_FULL] / 4


def test_files_that_were_begun_and_left_are_swept_after_ten_minutes(
    disk: Callable[..., DiskSpool], home: Path, clock: Clock
) -> None:
    store = disk()
    store.put(payload(0))
    name = visible(home)[0].name
    left, begun = home / f".1{name[1:]}", home / f".0{name[1:]}"
    for path in (left, begun):
        path.write_bytes(b"x" * 10)
    os.utime(left, (time.time() - 601, time.time() - 601))
    store.put(payload(1))
    assert not left.exists()
    assert begun.exists()
    assert all_of(store) == [0, 1]


def test_a_writer_that_hangs_holds_up_no_other_for_long(disk: Callable[..., DiskSpool], home: Path) -> None:
    store = disk()
    store.put(payload(0))
    hanging = FileLock.take(home / "locks" / "put", 0)
    assert hanging is not None
    began = time.monotonic()
    assert store.put(payload(1))
    assert 0.9 < time.monotonic() - began < 30
    hanging.release()
    assert all_of(store) == [0, 1]


def test_no_lock_is_held_when_the_callback_runs(disk: Callable[..., DiskSpool], home: Path) -> None:
    """It may log, and the log line may end in a spool."""
    counted: list[bool] = []

    def on_drop(*_: object) -> None:
        lock = FileLock.take(home / "locks" / "put", 0)
        counted.append(lock is not None)
        if lock is not None:
            lock.release()

    store = disk(limit=1500, on_drop=on_drop)
    store.put(payload(0, size=1000))
    store.put(payload(1, size=1000))
    assert counted == [True]


# Files that went bad


def _rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return rewrite


def _become(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def crafted(body: bytes, items: int = 1) -> bytes:
    rest = struct.pack(">Id", items, NOW) + body
    return b"otelkit\x01" + struct.pack(">I", zlib.crc32(rest)) + rest


def bomb(size: int) -> bytes:
    deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join([*(deflate.compress(bytes(1 << 20)) for _ in range(size >> 20)), deflate.flush()])


DAMAGE = {
    "empty": _rewrite(lambda _: b""),
    "truncated": _rewrite(lambda content: content[:-1]),
    "truncated header": _rewrite(lambda content: content[:10]),
    "longer": _rewrite(lambda content: content + b"\0"),
    "flipped bit": _rewrite(lambda content: content[:60] + bytes([content[60] ^ 4]) + content[61:]),
    "flipped bit in the facts": _rewrite(lambda content: content[:13] + bytes([content[13] ^ 1]) + content[14:]),
    "another format": _rewrite(lambda content: b"OTELKIT\x01" + content[8:]),
    "a later version": _rewrite(lambda content: b"otelkit\x02" + content[8:]),
    "no gzip": _rewrite(lambda _: crafted(b"hello")),
    "half a gzip": _rewrite(lambda _: crafted(zlib.compress(bytes(1000), 1, 31)[:-3])),
    "two gzips": _rewrite(lambda _: crafted(zlib.compress(b"a", 1, 31) * 2)),
    "a bomb": _rewrite(lambda _: crafted(bomb(65 << 20))),
    "a symbolic link": _become(lambda path: path.symlink_to("/etc/passwd")),
    "a directory": _become(lambda path: path.mkdir()),
    "a FIFO": _become(lambda path: os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_file_is_set_aside_and_counted_once_and_costs_no_other(
    damage: str, disk: Callable[..., DiskSpool], drops: Drops, home: Path
) -> None:
    store = disk()
    for number in range(3):
        store.put(payload(number, items=10 + number))
    bad = visible(home)[1]
    DAMAGE[damage](bad)
    assert all_of(store, settle=False) == [0, 2]
    assert all_of(store) == [0, 2]
    assert drops.items == {("traces", Cause.CORRUPT): 11}
    assert [path.name for path in (home / "corrupt").iterdir()] == [bad.name]
    assert stat.S_IMODE((home / "corrupt").stat().st_mode) == 0o700


def test_a_link_to_a_good_payload_is_no_payload(disk: Callable[..., DiskSpool], drops: Drops, home: Path) -> None:
    store = disk()
    store.put(payload(7))
    (path,) = visible(home)
    elsewhere = path.rename(home.parent / "elsewhere")
    path.symlink_to(elsewhere)
    assert all_of(store) == []
    assert drops.items == {("traces", Cause.CORRUPT): 1}
    assert elsewhere.exists()


def test_another_users_file_is_no_payload(
    disk: Callable[..., DiskSpool], drops: Drops, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = disk()
    store.put(payload(0))
    if os.geteuid() == 0:
        os.chown(visible(home)[0], STRANGER, STRANGER)
        assert all_of(store) == []
        assert drops.items == {("traces", Cause.CORRUPT): 1}
    else:
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
        with pytest.raises(Corrupt):
            files.read(visible(home)[0], "traces")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(crafted(bomb(512 << 20)))
    assert path.stat().st_size < 4 << 20
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt):
            files.read(path, "traces")
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


def test_a_body_too_large_to_be_unpacked_again_is_not_kept(
    disk: Callable[..., DiskSpool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGEST_BODY", 1000)
    store = disk()
    assert not store.put(payload(0, size=1001))
    assert store.put(payload(1, size=1000))
    assert all_of(store) == [1]


@hypothesis_settings(max_examples=200, deadline=None)
@given(data=st.data(), body=st.binary(max_size=400))
def test_no_damage_goes_unnoticed(data: st.DataObject, body: bytes) -> None:
    content = files.pack(Payload("logs", body, 3, NOW))
    assert files.unpack(content, "logs") == Payload("logs", body, 3, NOW)
    at = data.draw(st.integers(0, len(content) - 1))
    flipped = content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) + content[at + 1 :]
    for damaged in (flipped, content[:at]):
        with pytest.raises(Corrupt):
            files.unpack(damaged, "logs")


def test_of_bad_files_the_newest_are_kept_and_they_go_first_when_room_is_needed(
    disk: Callable[..., DiskSpool], drops: Drops, home: Path
) -> None:
    store = disk(limit=20_000)
    for number in range(CORRUPT_KEPT + 2):
        store.put(payload(number, size=1000))
    names = [path.name for path in visible(home)]
    for path in visible(home):
        path.write_bytes(b"x" * 1000)
    assert all_of(store) == []
    assert sorted(path.name for path in (home / "corrupt").iterdir()) == names[2:]
    assert drops.items == {("traces", Cause.CORRUPT): CORRUPT_KEPT + 2}
    for number in range(100, 110):
        assert store.put(payload(number, size=1000))
        assert length(home) + length(home / "corrupt") <= 20_000
    assert all_of(store) == list(range(100, 110))
    assert drops.items == {("traces", Cause.CORRUPT): CORRUPT_KEPT + 2}


def test_without_a_place_for_bad_files_they_are_removed(
    disk: Callable[..., DiskSpool], drops: Drops, home: Path, tmp_path: Path
) -> None:
    store = disk()
    store.put(payload(0))
    (home / "corrupt").symlink_to(tmp_path)
    visible(home)[0].write_bytes(b"")
    assert all_of(store) == []
    assert visible(home) == []
    assert drops.items == {("traces", Cause.CORRUPT): 1}
    assert not list(tmp_path.glob("*.otlp")), "the link was not followed"


# Rights


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_files_and_folders_are_for_this_user_alone_whatever_the_umask(
    umask: int, tmp_path: Path, drops: Drops, clock: Clock
) -> None:
    before = os.umask(umask)
    try:
        store = DiskSpool(open_root(tmp_path / "a" / "b"), SERVICE, "traces", "ab", on_drop=drops, clock=clock)
        assert store.put(payload(0))
        claim = store.claim()
        assert claim is not None
    finally:
        os.umask(before)
    found = {path: stat.S_IMODE(path.lstat().st_mode) for path in (tmp_path / "a", *(tmp_path / "a").rglob("*"))}
    assert len(found) == 7, "three folders of the spool, a parent, two locks and a payload"
    for path, mode in found.items():
        assert mode == (0o700 if path.is_dir() else 0o600), path
    claim.close()


def test_a_root_of_ours_that_is_open_to_others_is_closed_to_them(tmp_path: Path) -> None:
    root = open_root(tmp_path / "spool")
    (root / folder_name(SERVICE)).mkdir()
    for mode in (0o755, 0o777, 0o500, 0o750):
        root.chmod(mode)
        assert open_root(root) == root
        assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_directory_that_serves_other_ends_is_not_closed_to_others(tmp_path: Path) -> None:
    """As root, ``/var/lib`` is ours too."""
    for mode, content in ((0o755, "dpkg"), (0o1777, None)):
        shared = tmp_path / f"{mode:o}"
        shared.mkdir()
        if content:
            (shared / content).mkdir()
        shared.chmod(mode)
        with pytest.raises(
            SpoolUnusable, match=r"open to group or others \(mode [01]7.*make it 0700, or name"
        ) as refused:
            open_root(shared)
        assert str(shared) in str(refused.value)
        assert stat.S_IMODE(shared.stat().st_mode) == mode


def test_a_root_that_is_no_place_of_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_bytes(b"")
    for path, message in (
        (tmp_path / "link", "is a symbolic link: name the directory itself"),
        (tmp_path / "file", "is not a directory: name one"),
        (tmp_path / "file" / "below", "cannot be used .Not a directory.: name a directory that"),
        (Path("spool"), "is not an absolute path: name a directory from / on"),
        (Path("~/spool"), "is not an absolute path"),
    ):
        with pytest.raises(SpoolUnusable, match=message) as refused:
            open_root(path)
        assert str(path) in str(refused.value)
    assert not list((tmp_path / "real").iterdir())
    assert not Path("spool").exists()
    if os.geteuid() == 0:
        os.chown(tmp_path / "real", STRANGER, STRANGER)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    (tmp_path / "real").chmod(0o777)
    with pytest.raises(
        SpoolUnusable, match=r"real belongs to user \d+ and this is user \d+: name a directory of its own"
    ):
        open_root(tmp_path / "real")
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o777


def test_a_services_folder_that_was_planted_is_not_written_to(
    disk: Callable[..., DiskSpool], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "trap").mkdir()
    home.symlink_to(tmp_path / "trap")
    store = disk()
    assert not store.put(payload())
    assert store.claim() is None
    assert not list((tmp_path / "trap").iterdir())


def test_the_default_root_is_the_users_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "otel-kit"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for invalid in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", invalid)
        assert default_root() == tmp_path / "home/.local/state/otel-kit"
    assert open_root(default_root()).is_dir()


def test_a_user_without_a_home_has_no_spool_rather_than_one_in_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    for home in ("/dev/null", None):
        if home is None:
            monkeypatch.delenv("HOME")
            monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # in no user database
        else:
            monkeypatch.setenv("HOME", home)
        with pytest.raises(SpoolUnusable, match="otel-kit"):
            open_root(default_root())


# A disk that goes away


def test_a_deleted_folder_is_made_anew(disk: Callable[..., DiskSpool], root: Path, home: Path) -> None:
    store = disk()
    for gone in (home, root, home / "locks"):
        store.put(payload(0))
        claim = store.claim()
        assert claim is not None
        assert claim.next() is not None
        shutil.rmtree(gone)
        claim.done()
        assert claim.next() is None
        claim.close()
        assert store.put(payload(1))
        assert store.changed()
        assert all_of(store) == [1]
        assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_costs_a_no_and_no_exception(disk: Callable[..., DiskSpool], root: Path) -> None:
    store = disk()
    store.put(payload(0))
    claim = store.claim()
    assert claim is not None
    shutil.rmtree(root)
    root.write_bytes(b"in the way")
    assert not store.put(payload(1))
    assert claim.next() is None
    claim.done()
    claim.close()
    assert store.claim() is None
    assert store.size() == 0
    assert not store.changed() or store.claim() is None
    assert not disk().put(payload(2))


def test_a_payload_that_cannot_be_removed_is_not_replayed_for_ever(
    disk: Callable[..., DiskSpool], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = disk()
    store.put(payload(0))

    def refuses(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuses)
        assert all_of(store) == [0]
        assert all_of(store) == []


@contextmanager
def small_disk(path: Path) -> Iterator[bool]:
    """A file system of 64 KiB at ``path``; False where this user may not mount one."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none", path], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_costs_a_no_and_what_is_on_it_can_be_replayed(
    tmp_path: Path, drops: Drops, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk") as real, monkeypatch.context() as patched:
        root = open_root(tmp_path / "disk")
        store = DiskSpool(root, SERVICE, "traces", "ab", on_drop=drops, clock=clock)
        if not real:
            written, write = 0, os.write

            def limited(descriptor: int, content: bytes) -> int:
                nonlocal written
                written += len(content)
                if written > 65_536:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(descriptor, content)

            patched.setattr(os, "write", limited)
        kept = 0
        while store.put(payload(kept, size=7000)):
            kept += 1
        assert 5 <= kept <= 10
        assert not store.put(payload(kept, size=30_000))
        assert not [path for path in (root / folder_name(SERVICE)).iterdir() if path.name.startswith(".")]
        if real:
            with (root / "filler").open("wb", buffering=0) as filler, suppress(OSError):
                while filler.write(b"x"):
                    pass
            with pytest.raises(
                SpoolUnusable, match=r"cannot be written to \(No space left on device\): name a directory on"
            ):
                open_root(root)
        assert all_of(store) == list(range(kept))
        assert not drops.items
        if real:
            assert store.put(payload(1, size=7000))
            subprocess.run(["mount", "-o", "remount,ro", root], check=True)
            assert not store.put(payload(2))
            assert all_of(store) == []
            with pytest.raises(SpoolUnusable, match=r"cannot be written to \(Read-only file system\)"):
                open_root(root)


# Processes


PRELUDE = """
import os, sys, time, random
from pathlib import Path
from otel_kit.telemetry.payload import Payload
from otel_kit.telemetry.spool import DiskSpool, open_root
root, arguments = Path(sys.argv[1]), sys.argv[2:]
dropped = 0
def on_drop(signal, cause, items):
    global dropped
    dropped += items
def spool(signal="traces", **options):
    return DiskSpool(root, "shop/api", signal, "ab12", on_drop=on_drop, **options)
def payload(number, size=100, signal="traces"):
    return Payload(signal, number.to_bytes(4) + random.Random(number).randbytes(size - 4), 1, time.time())
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one piece, for a child may say something too
"""


@pytest.fixture
def program(root: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a program beside this one; what is left at the end, of it and its children, is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(root), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def here(root: Path, drops: Drops) -> DiskSpool:
    """This process's spool, with the real clock as the programs have it."""
    return DiskSpool(root, SERVICE, "traces", "ab12", on_drop=drops)


def test_a_writer_killed_at_any_moment_leaves_only_whole_files(
    program: Callable[..., subprocess.Popen[str]], here: DiskSpool, home: Path, drops: Drops
) -> None:
    writes = """
        from otel_kit.telemetry.spool import files
        one = payload(1, 4_000_000)
        content = files.pack(one)
        files.pack = lambda _: content  # so that it is at the disk most of the time
        store = spool(limit=40_000_000)
        say("ready")
        while True:
            assert store.put(Payload("traces", one.body, 1, time.time()))
    """
    for attempt in range(5):
        process = program(writes)
        assert line(process) == "ready"
        time.sleep(0.03 + attempt * 0.017)
        process.kill()
        process.wait(10)
        assert visible(home)
        for path in visible(home):
            assert len(files.read(path, "traces").body) == 4_000_000
    assert here.put(payload(created=time.time()))
    assert len(all_of(here)) > 1
    assert not drops.items


def test_a_writer_killed_half_way_leaves_nothing_that_is_replayed_or_counted(
    program: Callable[..., subprocess.Popen[str]], here: DiskSpool, home: Path, drops: Drops
) -> None:
    process = program(
        """
        write = os.write
        def dies(descriptor, content):
            write(descriptor, content[: len(content) // 2])
            os.kill(os.getpid(), 9)
        store = spool()
        os.write = dies
        store.put(payload(1, 5000))
        """
    )
    assert process.wait(10) == -signal.SIGKILL
    assert visible(home) == []
    assert len([path for path in home.iterdir() if path.name.startswith(".")]) == 1
    here.put(payload(2, created=time.time()))
    assert all_of(here) == [2]
    assert not drops.items


def test_eight_processes_lose_and_double_nothing_below_the_bound(
    program: Callable[..., subprocess.Popen[str]], here: DiskSpool
) -> None:
    puts = """
        store, first = spool(), int(arguments[0])
        say("ready"); sys.stdin.readline()
        for number in range(first, first + 40):
            assert store.put(payload(number, 2000))
        say(dropped)
    """
    processes = [program(puts, 1000 * n) for n in range(8)]
    assert [line(process) for process in processes] == ["ready"] * 8
    for process in processes:
        tell(process)
    assert [line(process) for process in processes] == ["0"] * 8
    assert sorted(all_of(here)) == [1000 * n + number for n in range(8) for number in range(40)]


def test_eight_processes_keep_the_bound_exactly_and_count_all_that_goes(
    program: Callable[..., subprocess.Popen[str]], here: DiskSpool, home: Path
) -> None:
    limit = 200_000
    puts = """
        from otel_kit.telemetry.spool import folder
        folder._LOCK_WAIT = 60.0  # on a busy machine a second may pass, and the bound is only kept with the lock
        store, signal = spool(arguments[1], limit=int(arguments[0])), arguments[1]
        say("ready"); sys.stdin.readline()
        kept = sum(store.put(payload(number, 3000, signal)) for number in range(60))
        say(kept, dropped)
    """
    processes = [program(puts, limit, ("traces", "logs", "metrics")[n % 3]) for n in range(8)]
    assert [line(process) for process in processes] == ["ready"] * 8
    for process in processes:
        tell(process)
    sizes = []
    while any(process.poll() is None for process in processes):
        if (home / "locks").is_dir():
            writing = FileLock.take(home / "locks" / "put", 0.05)
            if writing is not None:  # nobody writes or evicts while we look
                sizes.append(length(home))
                writing.release()
        time.sleep(0.005)
    sizes.append(length(home))
    assert max(sizes) <= limit
    assert sizes[-1] > limit - 3100, "no more was given up than had to be"
    reports = [tuple(map(int, line(process).split())) for process in processes]
    assert [kept for kept, _ in reports] == [60] * 8
    assert sum(dropped for _, dropped in reports) + len(visible(home)) == 8 * 60


HOLDS = """
    store = spool()
    claim = store.claim()
    say("got it" if claim else "nothing", os.getpid())
    if claim:
        claim.next()
"""


def test_of_two_processes_one_claims_and_the_other_may_when_it_is_killed(
    program: Callable[..., subprocess.Popen[str]], here: DiskSpool
) -> None:
    here.put(payload(created=time.time()))
    holder = program(HOLDS + "    sys.stdin.readline()\n")
    assert line(holder).startswith("got it")
    assert line(program(HOLDS)).startswith("nothing")
    assert here.claim() is None
    holder.kill()
    holder.wait(10)
    assert all_of(here) == [0]


def test_a_claim_ends_with_its_process_though_a_forked_child_lives_on(
    program: Callable[..., subprocess.Popen[str]], here: DiskSpool
) -> None:
    here.put(payload(1, created=time.time()))
    here.put(payload(2, created=time.time()))
    holder = program(
        HOLDS
        + """
    child = os.fork()
    if child == 0:
        claim.done()
        inherited = claim.next()
        store.reset_after_fork()
        claim.done(); claim.close()
        say("child", inherited, claim.next(), os.getpid(), store.claim())
        time.sleep(60)
        os._exit(0)
    sys.stdin.readline()
        """
    )
    assert line(holder).startswith("got it")
    words = line(holder).split()
    assert words[0] == "child"
    child = int(words[-2])
    assert words == ["child", "None", "None", str(child), "None"], "what is the parent's is not the child's"
    assert here.claim() is None, "the child freed what the parent still holds"
    holder.kill()
    holder.wait(10)
    os.kill(child, 0)  # it is alive
    assert all_of(here) == [1, 2], "the child removed what the parent replayed"


def test_a_claim_that_is_closed_is_free_though_a_child_has_never_let_go_of_it(
    program: Callable[..., subprocess.Popen[str]], here: DiskSpool
) -> None:
    here.put(payload(created=time.time()))
    holder = program(
        HOLDS
        + """
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    claim.close()
    say(child)
    sys.stdin.readline()
        """
    )
    assert line(holder).startswith("got it")
    child = int(line(holder))
    assert all_of(here) == [0]
    os.kill(child, 0)  # it is alive, and has its copy still


@pytest.mark.parametrize(
    ("in_child", "in_parent"),
    [("store.reset_after_fork()", "os.kill(os.getpid(), 9)"), ("pass", "write(path, content)")],
    ids=["the parent dies", "the child knows nothing of it"],
)
def test_a_child_forked_in_the_middle_of_a_put_holds_up_nobody(
    in_child: str, in_parent: str, program: Callable[..., subprocess.Popen[str]], home: Path
) -> None:
    holder = program(
        f"""
        from otel_kit.telemetry.spool import files
        store = spool()
        write = files.write
        def forks(path, content):
            child = os.fork()
            if child == 0:
                {in_child}
                say("ready")
                time.sleep(60)
                os._exit(0)
            say(child)
            sys.stdin.readline()
            {in_parent}
        files.write = forks
        store.put(payload(1))
        """
    )
    child = next(int(word) for word in (line(holder), line(holder)) if word != "ready")
    tell(holder)
    holder.wait(10)
    os.kill(child, 0)  # it is alive
    lock = FileLock.take(home / "locks" / "put", 0)
    assert lock is not None, "the child keeps the lock of its parent's put"
    lock.release()


def test_a_forked_child_starts_with_an_empty_memory(drops: Drops, clock: Clock) -> None:
    store = MemorySpool("traces", on_drop=drops, clock=clock)
    store.put(payload(0))
    claim = store.claim()
    assert claim is not None
    assert claim.next() is not None
    held = store._lock
    with held:  # as a thread of the parent's may at that moment
        store.reset_after_fork()
        other = threading.Thread(target=store.put, args=(payload(1),))
        other.start()
        other.join(5)
        assert not other.is_alive()
    claim.done()
    assert claim.next() is None
    claim.close()
    assert all_of(store) == [1]
    assert not drops.items


def test_changed_sees_what_another_process_put(program: Callable[..., subprocess.Popen[str]], here: DiskSpool) -> None:
    puts = """
        store = spool()
        say("ready")
        for order in sys.stdin:
            store.put(payload(1))
            say("done")
    """
    other = program(puts)
    assert line(other) == "ready"
    assert not here.changed()
    for _ in range(3):
        time.sleep(0.02)  # a tick of the file system's clock
        tell(other)
        assert line(other) == "done"
        assert here.changed()
        assert not here.changed()


def test_changed_says_at_first_whether_anything_is_there(disk: Callable[..., DiskSpool]) -> None:
    disk("logs").put(payload(signal="logs"))
    assert not disk("traces").changed()
    disk("traces").put(payload())
    assert disk("traces").changed()


def test_changed_looks_once_more_when_it_may_have_looked_too_early(
    disk: Callable[..., DiskSpool], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system's clock stands still for a while: what comes in the same tick leaves the folder's time as it was."""
    store = disk()
    store.put(payload(0))
    assert store.changed()
    before = home.stat().st_mtime_ns
    assert all_of(store) == [0]
    disk().put(payload(1))
    os.utime(home, ns=(before, before))
    assert not store.changed(), "one look must do for now"
    store.put(payload(2))
    os.utime(home, ns=(before, before))
    assert store.changed(), "of its own it need not be told"
    assert not store.changed()
    monkeypatch.setattr(time, "time_ns", lambda: before + 3_000_000_000)
    assert store.changed()
    assert not store.changed()


def test_a_write_that_ends_half_way_leaves_nothing(
    program: Callable[..., subprocess.Popen[str]], here: DiskSpool, home: Path
) -> None:
    process = program(
        """
        import resource
        store = spool()
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        say(store.put(payload(1, 30_000)), store.put(payload(2, 5_000)))
        """
    )
    assert line(process) == "False True"
    assert all_of(here) == [2]
    assert {path.name for path in home.iterdir()} == {"locks"}


def test_entries_say_what_their_names_say() -> None:
    entry = Entry.of(payload(0, signal="metrics", items=17), 5, "ab-1_x")
    assert Entry.parse(entry.name) == entry
    assert (entry.items, entry.signal, entry.fingerprint, entry.created_ms) == (
        17,
        "metrics",
        "ab-1_x",
        int(NOW * 1000),
    )
    for other in ("put", f".{entry.name}", f"{entry.name}~", entry.name.replace("metrics", "profiles"), ""):
        assert Entry.parse(other) is None
