"""What tests of several rooms share: a small base, fine-tuned checkpoints of it, and a daemon as a real process."""

import os

# Before anything imports torch: waiting threads sleep instead of spinning, which matters on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.models import make_base

# Started in the background, this process ignores SIGINT, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def seed() -> int:
    """The seed of a randomised test; printed when the test fails. FOLDIN_TEST_SEED repeats a run."""
    value = int(os.environ.get("FOLDIN_TEST_SEED") or random.SystemRandom().randrange(2**31))
    print(f"FOLDIN_TEST_SEED={value}")
    return value


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small base model folder."""
    return make_base(tmp_path / "base")


@pytest.fixture
def daemon(tmp_path: Path, base: Path) -> Iterator[Daemon]:
    """A running daemon that serves a new state folder of `base`."""
    with Daemon(tmp_path / "state", base=base) as running:
        yield running


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons with settings of one's own; they are killed at the end of the test."""
    started: list[Daemon] = []

    def start(*arguments: object, **settings: object) -> Daemon:
        daemon = Daemon(*arguments, **settings)  # type: ignore[arg-type]
        started.append(daemon)
        return daemon.start()

    yield start
    for daemon in started:
        daemon.kill()


@pytest.fixture(scope="session")
def suite() -> Path:
    """The unpacked suite of real fine-tuned checkpoints."""
    path = os.environ.get("FOLDIN_SUITE")
    if not path:
        pytest.skip("FOLDIN_SUITE is not set: it names a folder with a real base, real checkpoints and their scorer")
    return Path(path)
