"""One daemon for all tests of the door that do not disturb each other."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import Tensor

from tests.support.daemon import Daemon
from tests.support.models import base_tensors, make_base
from tests.support.wire import Daemons, Wire, fine_tuned


@pytest.fixture(scope="package")
def tensors() -> dict[str, Tensor]:
    """Of the base."""
    return base_tensors()


@pytest.fixture(scope="package")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("intake") / "base")


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the daemon may read."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory, base: Path, root: Path) -> Iterator[Daemon]:
    flags = ("--ignore", "classifier.*", "--allowed-root", str(root))
    with Daemon(tmp_path_factory.mktemp("intake-state") / "state", base, *flags) as running:
        yield running


@pytest.fixture(scope="package")
def wire(daemon: Daemon) -> Iterator[Wire]:
    with Wire(daemon) as wire:
        yield wire


@pytest.fixture
def checkpoint(tensors: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Makes tensors of a good checkpoint; no two are the same."""
    return lambda: fine_tuned(tensors)


@pytest.fixture
def start_daemon() -> Iterator[Daemons]:
    """Start daemons with settings of one's own; they are killed at the end of the test."""
    daemons = Daemons()
    yield daemons
    daemons.end()
