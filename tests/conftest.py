"""What every test may ask for."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from otel_kit.testing import OtlpSink


def pytest_sessionstart() -> None:
    """Let the programs that tests start take Ctrl-C and a hangup, whatever shell has started the tests.

    A shell without job control starts ``pytest &`` with SIGINT ignored and nohup does so with SIGHUP; what is ignored stays
    so through exec. A handler does not: the programs begin with the default, and the tests themselves go on ignoring it.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)


class ByServer(LoadScopeScheduling):
    """Keeps the tests that share servers in one process: those of one file, and in the common suite those of one framework.

    xdist's own groups do not work with pytest 9.2: what it writes to a test's id is no longer read.
    """

    def _split_scope(self, nodeid: str) -> str:
        path, _, test = nodeid.partition("::")
        return test[test.index("[") :] if path.endswith("frameworks/test_suite.py") else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    """Used whatever ``--dist`` says."""
    return ByServer(config, log)


@pytest.fixture(autouse=True, scope="session")
def own_spool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests could not deliver stays among the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_KIT_SPOOL_DIR", str(tmp_path_factory.mktemp("spool")))
        yield


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    """An OTLP receiver of the test's own."""
    with OtlpSink() as receiver:
        yield receiver
