"""A job that hangs, in every kind of process: it shows while it runs, and in `otel-kit jobs running`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.frameworks.adapter import Framework
from tests.frameworks.conftest import Bench, Seen
from tests.frameworks.registry import frameworks
from tests.integration.conftest import eventually

#: Seconds that the job hangs: longer than anybody waits here.
HANGS = 100.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("framework", [pytest.param(each, id=each.name) for each in frameworks()], scope="module")


def test_a_job_that_hangs_shows_while_it_runs(framework: Framework, fresh: Bench) -> None:
    fresh.start()
    seen = Seen(fresh)
    publisher = subprocess.Popen(
        [framework.python(), "-c", f"import app; app.publish('slow', {HANGS})"],
        cwd=fresh.programs.directory, env=fresh.programs.environment(**fresh.environment(OTEL_SERVICE_NAME="producer")),
        start_new_session=True,
    )  # fmt: skip
    fresh.programs.running.append(publisher)  # without a broker the caller hangs with its job

    def ages() -> list[float]:
        return [point.value for point in seen.gauge("job.active.oldest_age", job__name="slow")]

    eventually(lambda: max(ages(), default=0) > 2, 60)
    # It grows as time does: each point is a look at what runs at that moment.
    grown = [age for age in ages() if age > 0]
    assert grown == sorted(grown)
    eventually(lambda: max(ages()) > grown[-1], 20)
    assert seen.gauge("job.active", job__name="slow")[-1].value == 1
    assert seen.runs("slow") == []  # its span comes at its end, which is not in sight
    if framework.system != "redis":
        return
    command = [sys.executable, "-m", "otel_kit.cli.main", "jobs", "running", "--redis", fresh.broker]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert listed.returncode == 0, listed.stderr
    [line] = [line for line in listed.stdout.splitlines() if " alive " in line]
    assert line.split()[0] == "slow"
    assert framework.queue in line
