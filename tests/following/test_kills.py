"""kill -9 of a follower: whenever it comes, `current` is absent or whole, and the next start arrives."""

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from foldin import Client, follow

from tests.following import struck
from tests.following.running import Alias, Following, record, require_whole
from tests.support.daemon import Daemon, foldin
from tests.support.history import VERSIONS

LOGGING = 'echo $FOLDIN_VERSION >> "$FOLDIN_TEST_LOG"'
FAILING = f"{LOGGING}; [ $FOLDIN_VERSION != 3 ]"


def arrive(daemon: Daemon, alias: Alias, to: Path, log: Path) -> None:
    """Start it a last time: it arrives, and the hooks ran for where it is."""
    version = alias.client.show(alias.name).version
    command = LOGGING.replace("$FOLDIN_TEST_LOG", str(log))
    foldin("follow", "--server", daemon.server, "--alias", alias.name, "--to", str(to), "--once", "--exec", command)
    assert require_whole(alias.client, to) == version
    assert log.read_text().split()[-1] == str(version), "the last that the server was told"
    assert record(to)["loaded"] == version
    left_over = [path.name for path in (to / "versions").iterdir() if path.name.startswith(".")]
    assert left_over == []
    for other in range(1, VERSIONS + 1):
        alias.move(other)
        list(follow(alias.client, alias=alias.name, to=to, once=True))
        assert require_whole(alias.client, to) == other, "what lies under the name of a version is whole, or replaced"
    alias.move(version)


@contextmanager
def moving(alias: Alias, dice: random.Random) -> Iterator[None]:
    """Move an alias all the time, with pauses as long as a swap."""
    done = Event()

    def move() -> None:
        while not done.wait(dice.uniform(0, 0.05)):
            alias.move(dice.randint(1, VERSIONS))

    thread = Thread(target=move)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.long)])
def test_at_random_moments(
    daemon: Daemon, client: Client, alias: Alias, to: Path, tmp_path: Path, seed: int, kills: int
) -> None:
    dice, log = random.Random(seed), tmp_path / "log"
    environment = {"FOLDIN_TEST_LOG": str(log)}
    flags = ("--keep", "1", "--exec", FAILING)
    struck_at: dict[str, int] = {}
    for _ in range(kills):
        with (
            moving(alias, dice),
            Following(daemon.server, alias.name, to, *flags, environment=environment) as following,
        ):
            following.wait_for("swapped")
            dice_says = dice.uniform(0, 0.4)
            Event().wait(dice_says)
            following.kill()
        last = following.events[-1]["event"]
        struck_at[last] = struck_at.get(last, 0) + 1
        require_whole(client, to)
    print(f"killed after {struck_at}")
    arrive(daemon, alias, to, log)


def scenario(daemon: Daemon, alias: Alias, to: Path, log: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    """Start it, with a hook that fails for v3."""
    flags = ("--keep", "1", "--exec", FAILING)
    where = ("--server", daemon.server, "--alias", alias.name, "--to", str(to))
    return subprocess.run(
        [sys.executable, struck.__file__, str(kill_at), str(to), "follow", "--once", *where, *flags],
        env={**os.environ, "FOLDIN_TEST_LOG": str(log)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_first_start(daemon: Daemon, alias: Alias, to: Path, tmp_path: Path) -> None:
    alias.move(1)
    for step in range(1, 7):
        ended = scenario(daemon, alias, to, tmp_path / "log", step)
        assert ended.returncode == -9, f"step {step}: {ended.stderr}"
    arrive(daemon, alias, to, tmp_path / "log")


@pytest.fixture
def prepared(daemon: Daemon, alias: Alias, tmp_path: Path) -> Path:
    """A folder at v4, with v2 to go back to: at v1 that is removed, and v3 fails."""
    to = tmp_path / "prepared"
    for version in (1, 2, 4):
        alias.move(version)
        foldin("follow", "--server", daemon.server, "--alias", alias.name, "--to", str(to), "--once", "--keep", "1")
    return to


@pytest.mark.parametrize(
    ("goal", "tried"),
    [(1, 2), (3, 3), pytest.param(1, 99, marks=pytest.mark.long), pytest.param(3, 99, marks=pytest.mark.long)],
)
def test_before_each_step(
    daemon: Daemon, client: Client, alias: Alias, prepared: Path, tmp_path: Path, seed: int, goal: int, tried: int
) -> None:
    alias.move(goal)
    to, log = tmp_path / "host", tmp_path / "log"

    def strike(step: int) -> subprocess.CompletedProcess[str]:
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(prepared, to, symlinks=True)
        log.unlink(missing_ok=True)
        return scenario(daemon, alias, to, log, step)

    whole = strike(0)
    assert whole.returncode == (1 if goal == 3 else 0), whole.stderr
    steps = int(re.search(r"steps: (\d+)", whole.stderr)[1])  # type: ignore[index]
    assert steps > 8, "what this test strikes"
    for step in sorted(random.Random(seed).sample(range(1, steps + 1), min(tried, steps))):
        ended = strike(step)
        assert ended.returncode == -9, f"step {step}: {ended.stderr}"
        assert require_whole(client, to) in {4, goal}, f"step {step}"
        arrive(daemon, alias, to, log)
