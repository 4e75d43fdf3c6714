"""What is remembered of jobs: across processes, side by side, on bad disks, and never on the caller's time."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_kit.jobs import memory as memory_module
from otel_kit.jobs.history import Past
from otel_kit.jobs.memory import JobMemory, merged
from tests.integration.conftest import eventually


@pytest.fixture
def memory(tmp_path: Path) -> JobMemory:
    return JobMemory(tmp_path / "jobs")


def again(memory: JobMemory) -> dict[str, Past]:
    """What another process finds there."""
    return JobMemory(memory._directory).load()


def test_what_is_recorded_is_found_by_the_next_process(memory: JobMemory) -> None:
    now = time.time()
    memory.record("nightly", Past(now - 5, now - 3, now - 90_000, 0))
    memory.record("hourly", Past(now, None, now, 3))
    assert memory.save()
    assert again(memory) == {
        "nightly": Past(now - 5, now - 3, now - 90_000, 0),
        "hourly": Past(now, None, now, 3),
    }


def test_nothing_is_made_before_something_is_recorded(memory: JobMemory, tmp_path: Path) -> None:
    assert memory.load() == {}
    assert memory.save()
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_by_itself_and_not_on_the_callers_thread(
    memory: JobMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers = []
    write = JobMemory._write

    def noted(self: JobMemory, changes: dict[str, Past]) -> bool:
        writers.append(threading.current_thread().name)
        return write(self, changes)

    monkeypatch.setattr(JobMemory, "_write", noted)
    for number in range(100):
        memory.record("often", Past(last_start=time.time(), consecutive_failures=number))
    eventually(lambda: "often" in again(memory), 10)
    assert writers == ["otel-kit-memory"]


def test_recording_costs_the_caller_next_to_nothing(memory: JobMemory) -> None:
    memory.record("first", Past())
    began = time.perf_counter()
    for number in range(1000):
        memory.record(f"job-{number % 10}", Past(last_start=float(number)))
    assert (time.perf_counter() - began) / 1000 < 0.001


def test_a_job_that_never_ran_is_remembered_since_it_was_first_heard_of(memory: JobMemory) -> None:
    first = time.time() - 1000
    memory.record("never", Past(first_seen=first))
    memory.save()
    other = JobMemory(memory._directory)
    other.record("never", Past(first_seen=first + 500))
    other.save()
    assert again(memory)["never"].first_seen == first


def test_the_directory_and_the_file_are_this_users_alone(memory: JobMemory) -> None:
    memory.record("job", Past(last_start=time.time()))
    memory.save()
    assert stat.S_IMODE(memory._directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in memory._directory.iterdir()} == {0o600}


# Several processes


def test_processes_that_write_at_once_lose_nothing(memory: JobMemory) -> None:
    script = """
import sys, time
from pathlib import Path
from otel_kit.jobs.history import Past
from otel_kit.jobs.memory import JobMemory
memory = JobMemory(Path(sys.argv[1]))
for number in range(20):
    memory.record(f"{sys.argv[2]}-{number}", Past(last_success=time.time()))
    memory.record("shared", Past(last_start=1.7e9 + int(sys.argv[2]) * 100 + number))
    assert memory.save()
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(memory._directory), str(writer)]) for writer in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    found = again(memory)
    assert set(found) == {"shared", *(f"{writer}-{number}" for writer in range(3) for number in range(20))}
    assert found["shared"].last_start == 1.7e9 + 219


def test_a_process_that_is_killed_in_the_middle_leaves_a_file_that_can_be_read(memory: JobMemory) -> None:
    script = """
import sys, time
from pathlib import Path
from otel_kit.jobs.history import Past
from otel_kit.jobs.memory import JobMemory
memory = JobMemory(Path(sys.argv[1]))
while True:
    for number in range(200):
        memory.record(f"job-{number}", Past(last_success=time.time()))
    memory.save()
    print("saved", flush=True)
"""
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(memory._directory)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(3):
            assert writer.stdout.readline() == "saved\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
        writer.stdout.close()
        assert len(again(memory)) == 200
    memory.record("after", Past(last_start=time.time()))
    assert memory.save()
    assert not list(memory._directory.glob("*.partial"))


def test_a_forked_child_writes_its_own_and_not_its_parents(memory: JobMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_PAUSE", 60.0)
    memory.record("parents", Past(last_start=time.time()))
    child = os.fork()
    if child == 0:
        try:
            memory.reset_after_fork()
            memory.record("childs", Past(last_start=time.time()))
            os._exit(0 if memory.save() and set(again(memory)) == {"childs"} else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert memory.save()
    assert set(again(memory)) == {"childs", "parents"}


def test_new_threads_write_what_was_recorded_before_them(memory: JobMemory) -> None:
    memory.record("before", Past(last_start=time.time()))
    memory.renew()
    memory.record("after", Past(last_start=time.time()))
    eventually(lambda: set(again(memory)) == {"before", "after"}, 10)


# What two processes know, together


def test_the_latest_times_count_and_a_success_ends_the_failures() -> None:
    failed = Past(last_start=10.0, last_success=1.0, last_failure=10.0, consecutive_failures=4, first_seen=0.5)
    succeeded = Past(last_start=20.0, last_success=20.0, consecutive_failures=0, first_seen=5.0)
    expected = Past(20.0, 20.0, 10.0, 0, 0.5)
    assert merged(failed, succeeded) == merged(succeeded, failed) == expected


def test_failures_after_a_success_that_their_process_has_not_seen_count_as_one_at_least() -> None:
    succeeded = Past(last_success=20.0)
    failed = Past(last_success=1.0, last_failure=30.0, consecutive_failures=7)
    assert merged(succeeded, failed).consecutive_failures == merged(failed, succeeded).consecutive_failures == 1


def test_failures_of_the_same_streak_are_those_of_who_has_seen_more() -> None:
    one = Past(last_success=1.0, last_failure=5.0, consecutive_failures=2)
    other = Past(last_success=1.0, last_failure=4.0, consecutive_failures=5)
    assert merged(one, other).consecutive_failures == merged(other, one).consecutive_failures == 5


_time = st.one_of(st.none(), st.floats(1, 1000))
_remembered = st.builds(Past, _time, _time, _time, st.integers(0, 10), _time)


@given(_remembered, _remembered)
def test_it_does_not_matter_who_comes_first(one: Past, other: Past) -> None:
    assert merged(one, other) == merged(other, one)


# Bounds


def test_no_more_jobs_are_kept_than_the_bound_and_the_longest_silent_go(memory: JobMemory) -> None:
    now = time.time()
    for number in range(memory_module.MAX_JOBS + 50):
        memory.record(f"job-{number}", Past(last_start=now - number))
    memory.save()
    found = again(memory)
    assert len(found) == len(json.loads(memory._file.read_bytes())["jobs"]) == memory_module.MAX_JOBS
    assert "job-0" in found
    assert f"job-{memory_module.MAX_JOBS + 1}" not in found


def test_the_longest_names_fit_into_the_bytes_that_are_read(memory: JobMemory) -> None:
    now = time.time()
    for number in range(memory_module.MAX_JOBS):
        name = f"{number:04}" + "\U0001f40d" * 500
        memory.record(name, Past(now, now, now, 10**9, now))
    memory.save()
    assert memory._file.stat().st_size < memory_module.MAX_BYTES
    assert len(again(memory)) == memory_module.MAX_JOBS


# Bad disks and bad files


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'{"version": 2, "jobs": {}}', b'{"version": 1}', b'{"version": 1, "jobs": []}',
        b'{"version": 1, "jobs": {"a": 3}}', b"\xff\xfe", b"[" * 100_000, b"x" * (memory_module.MAX_BYTES + 1),
        b'{"version": 1, "jobs": {"a": {"last_start": 1' + b"0" * 5000 + b"}}}",
    ],
    ids=range(12),
)  # fmt: skip
def test_a_file_that_makes_no_sense_counts_as_none_and_is_replaced(
    memory: JobMemory, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    memory._directory.mkdir(mode=0o700)
    memory._file.write_bytes(content)
    assert all(past == Past() for past in memory.load().values())
    now = time.time()
    memory.record("job", Past(last_start=now))
    assert memory.save()
    assert again(memory)["job"].last_start == now
    assert sum("makes no sense" in record.message for record in caplog.records) <= 1


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    ),
    st.sampled_from(["last_start", "last_success", "consecutive_failures", "first_seen"]),
)
def test_whatever_stands_in_the_file_no_time_comes_of_it_that_cannot_be(value: object, field: str) -> None:
    content = json.dumps({"version": 1, "jobs": {"a": {field: value}}}).encode()
    found = memory_module._parse(content)
    assert found is not None
    for name in ("last_start", "last_success", "first_seen"):
        at = getattr(found["a"], name)
        assert at is None or 0 < at < time.time() + 3601
    assert 0 <= found["a"].consecutive_failures <= 10**9


def test_a_clock_that_was_ahead_does_not_make_every_later_success_look_old(memory: JobMemory) -> None:
    memory.record("job", Past(last_success=time.time() + 90_000))
    memory.save()
    now = time.time()
    memory.record("job", Past(last_success=now))
    memory.save()
    assert again(memory)["job"].last_success == now


@pytest.fixture
def closed_directory(tmp_path: Path) -> Path:
    """A path where nothing can be made, also by root: below a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "jobs"


def test_a_disk_that_takes_nothing_costs_one_warning_and_the_rest_goes_on(
    closed_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = JobMemory(closed_directory)
    assert memory.load() == {}
    for _ in range(3):
        memory.record("job", Past(last_start=time.time()))
        assert memory.save() is False
    told = [record.message for record in caplog.records if "cannot be written" in record.message]
    assert len(told) == 1
    assert str(closed_directory) in told[0]


def test_what_could_not_be_written_is_written_once_the_disk_takes_it_again(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    memory, now = JobMemory(blocked / "jobs"), time.time()
    memory.record("job", Past(last_success=now))
    assert memory.save() is False
    blocked.unlink()
    memory.record("other", Past(last_success=now))
    assert memory.save()
    assert again(memory)["job"].last_success == now


def test_a_full_disk_leaves_the_file_as_it_was(memory: JobMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    memory.record("job", Past(last_success=now))
    memory.save()
    kept = memory._file.read_bytes()
    script = """
import resource, signal, sys, time
from pathlib import Path
from otel_kit.jobs.history import Past
from otel_kit.jobs.memory import JobMemory
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
memory = JobMemory(Path(sys.argv[1]))
memory.record("job", Past(last_success=time.time() + 5))
sys.exit(memory.save())
"""
    assert (
        subprocess.run([sys.executable, "-c", script, str(memory._directory)], timeout=60, check=False).returncode == 0
    )
    assert memory._file.read_bytes() == kept
    assert not list(memory._directory.glob("*.partial"))


def test_a_link_in_the_place_of_the_file_or_the_directory_is_not_followed(memory: JobMemory, tmp_path: Path) -> None:
    somebodys = tmp_path / "somebodys.json"
    somebodys.write_text('{"version": 1, "jobs": {"evil": {"last_start": 5.0}}}')
    memory._directory.mkdir(mode=0o700)
    memory._file.symlink_to(somebodys)
    assert memory.load() == {}
    memory.record("job", Past(last_start=time.time()))
    memory.save()
    assert "evil" in somebodys.read_text()
    assert set(again(memory)) == {"job"}
    linked = JobMemory(tmp_path / "linked")
    linked._directory.symlink_to(memory._directory)
    linked.record("other", Past(last_start=time.time()))
    assert linked.save() is False


def test_a_pipe_in_the_place_of_the_file_does_not_hold_anybody_up(memory: JobMemory) -> None:
    memory._directory.mkdir(mode=0o700)
    os.mkfifo(memory._file)
    assert memory.load() == {}


def test_a_process_that_holds_the_lock_delays_nobody_for_long(memory: JobMemory) -> None:
    from otel_kit.telemetry.spool.lock import FileLock

    memory._directory.mkdir(mode=0o700)
    held = FileLock.take(memory._directory / "jobs.lock", 1.0)
    assert held is not None
    memory.record("job", Past(last_start=time.time()))
    began = time.monotonic()
    assert memory.save() is False
    assert time.monotonic() - began < 3
    held.release()
    assert memory.save()
    assert "job" in again(memory)
