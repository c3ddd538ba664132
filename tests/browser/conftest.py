"""Headless Chromium; its tests are skipped without it, unless it is said to be there."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Chromium
from tests.support.daemon import Daemon
from tests.support.history import History, history


def missing(what: str) -> None:
    """Skip the test, or fail it where $FOLDIN_BROWSER says that all is there."""
    if os.environ.get("FOLDIN_BROWSER"):
        pytest.fail(f"{what} is missing, and FOLDIN_BROWSER says that it is there")
    pytest.skip(f"{what} is not installed")


@pytest.fixture
def browser(chromium: Chromium) -> Chromium:
    """At an empty page, with nothing said so far."""
    chromium.open("about:blank")
    chromium.complaints()
    chromium.hosts()
    return chromium


@pytest.fixture(scope="package")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    for program in ("chromium", "chromedriver"):
        if not shutil.which(program):
            missing(program)
    with Chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="package")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script that looks for what people with disabilities cannot use."""
    folder = tmp_path_factory.mktemp("axe")
    if not shutil.which("npm"):
        missing("npm")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, "axe-core@4"]
    if subprocess.run(command, cwd=folder, check=False, timeout=60, capture_output=True).returncode:
        missing("axe-core from npm")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture(scope="package")
def past(tmp_path_factory: pytest.TempPathFactory) -> History:
    return history(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory, past: History) -> Iterator[Daemon]:
    """One that has merged four checkpoints."""
    with Daemon(past.copy(tmp_path_factory.mktemp("browser") / "state")) as running:
        with running.client() as client:
            client.set_alias("stable", 2)
        yield running


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the pages are written."""
    return tmp_path_factory.mktemp("pictures")
