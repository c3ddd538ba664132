"""A daemon over a copy of a history of four merges, and an alias of each test's own."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from foldin import Client

from tests.following.running import Alias
from tests.support.daemon import Daemon
from tests.support.history import History, history

_numbers = count(1)


@pytest.fixture(scope="package")
def past(tmp_path_factory: pytest.TempPathFactory) -> History:
    return history(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory, past: History) -> Iterator[Daemon]:
    with Daemon(past.copy(tmp_path_factory.mktemp("following") / "state")) as running:
        yield running


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.client() as client:
        yield client


@pytest.fixture
def alias(client: Client) -> Iterator[Alias]:
    """An alias that names v1."""
    alias = Alias(client, f"host-{next(_numbers)}")
    alias.move(1)
    yield alias
    alias.move(None)


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "host"
