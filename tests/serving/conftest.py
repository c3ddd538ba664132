"""A daemon over a copy of a history of four merges, shared by the tests that only look."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.history import History, history
from tests.support.wire import Daemons, Wire


@pytest.fixture(scope="package")
def past(tmp_path_factory: pytest.TempPathFactory) -> History:
    """What became of the submissions that the daemons here know of."""
    return history(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory, past: History) -> Iterator[Daemon]:
    with Daemon(past.copy(tmp_path_factory.mktemp("serving") / "state")) as running:
        yield running


@pytest.fixture(scope="package")
def wire(daemon: Daemon) -> Iterator[Wire]:
    with Wire(daemon) as wire:
        yield wire


@pytest.fixture
def start_daemon() -> Iterator[Daemons]:
    """Start daemons with settings of one's own; they are killed at the end of the test."""
    daemons = Daemons()
    yield daemons
    daemons.end()


@pytest.fixture
def reopened(tmp_path: Path, past: History, start_daemon: Daemons) -> Iterator[Callable[..., Wire]]:
    """Start a daemon with flags of one's own over a copy of the history, or over another state folder."""
    with ExitStack() as stack:

        def start(*flags: str, state: Path | None = None) -> Wire:
            daemon = start_daemon(state or past.copy(tmp_path / "state"), None, *flags)
            return stack.enter_context(Wire(daemon))

        yield start
