from collections.abc import Iterator
from pathlib import Path

import pytest
from foldind.state.database import Database
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger
from foldind.state.versions import Versions

from tests.support.history import History, history


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "ledger.sqlite", create=True) as database:
        yield database


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


@pytest.fixture
def versions(database: Database) -> Versions:
    return Versions(database)


@pytest.fixture
def past(tmp_path_factory: pytest.TempPathFactory) -> History:
    """What became of the submissions in `folder`."""
    return history(tmp_path_factory.getbasetemp())


@pytest.fixture
def folder(tmp_path: Path, past: History) -> StateFolder:
    """A state folder of four versions, of one's own."""
    return StateFolder(past.copy(tmp_path / "state"))
