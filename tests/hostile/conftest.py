"""One daemon that is attacked through all its doors."""

from collections.abc import Iterator

import pytest
from torch import Tensor

from tests.support.daemon import Daemon
from tests.support.dropping import SETTINGS, Box
from tests.support.models import base_tensors, make_base
from tests.support.wire import Wire


@pytest.fixture(scope="package")
def tensors() -> dict[str, Tensor]:
    """Of the base."""
    return base_tensors()


@pytest.fixture(scope="package")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """The inbox of the daemon."""
    place = tmp_path_factory.mktemp("hostile")
    inbox = place / "inbox"
    with Daemon(place / "state", make_base(place / "base"), "--inbox", str(inbox), environment=SETTINGS) as daemon:
        yield Box(inbox, daemon)


@pytest.fixture(scope="package")
def wire(box: Box) -> Iterator[Wire]:
    """Its gRPC door."""
    with Wire(box.daemon) as wire:
        yield wire
