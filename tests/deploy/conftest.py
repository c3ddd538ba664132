"""Tools that come from the system; their tests are skipped without them, unless they are said to be there."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import BIN, Daemon, wait_for
from tests.support.http import ask
from tests.support.models import base_tensors, make_base
from tests.support.wire import Wire, fine_tuned, single

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Return the path of a tool; without it the test is skipped, or fails where $FOLDIN_DEPLOY_TOOLS is set."""

    def find(name: str) -> str:
        found = shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
        if not found and os.environ.get("FOLDIN_DEPLOY_TOOLS"):
            pytest.fail(f"{name} is not installed, and FOLDIN_DEPLOY_TOOLS says that it is")
        if not found:
            pytest.skip(f"{name} is not installed")
        return found

    return find


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has merged one checkpoint."""
    folder = tmp_path_factory.mktemp("deploy")
    with Daemon(folder / "state", make_base(folder / "base")) as daemon:
        with Wire(daemon) as wire:
            wire.settled(wire.upload(single(fine_tuned(base_tensors()))).id)
        wait_for(lambda: ask(f"{daemon.http}/readyz").status == 200, "the daemon to be ready")
        yield daemon
