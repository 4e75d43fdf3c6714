"""What every test may ask for."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from otel_kit.testing import OtlpSink


def pytest_sessionstart() -> None:
    """Let the programs that tests start take Ctrl-C and a hangup, whatever shell has started the tests.

    A shell without job control starts ``pytest &`` with SIGINT ignored and nohup does so with SIGHUP; what is ignored stays
    so through exec. A handler does not: the programs begin with the default, and the tests themselves go on ignoring it.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one file in one process, where they share servers, unless they say what they belong to."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0].replace("/", ".")))


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
