"""Between merges the bases of the next one are computed; they are a cache, which only time shows."""

import re
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, wait_for
from tests.support.http import scrape
from tests.support.models import make_checkpoint

MATRICES = 3


def computed(daemon: Daemon) -> list[int]:
    """How many bases each merge had to compute."""
    return [int(count) for count in re.findall(r"(\d+) bases computed", daemon.log.read_text())]


def kept(daemon: Daemon) -> set[str]:
    return {path.name for path in (daemon.state / "bases").glob("*/*")}


def test_the_next_merge_finds_them(base: Path, tmp_path: Path) -> None:
    checkpoints = [make_checkpoint(tmp_path / f"task-{number}", base, seed=number) for number in range(3)]
    digests = []
    for keep in (True, False):
        daemon = Daemon(tmp_path / f"keep {keep}", base, environment={"FOLDIN_KEEP_BASES": str(keep)})
        with daemon, daemon.client() as client:
            assert kept(daemon) == set()
            for checkpoint in checkpoints:
                client.submit(checkpoint, wait=True)
                if keep:
                    daemon.wait_for_bases()
                    assert len(kept(daemon)) == MATRICES
            found = scrape(daemon.http)
            assert found("foldin_bases_wanted") == MATRICES
            assert found("foldin_bases_ready") == (MATRICES if keep else 0)
            assert (found("foldin_state_bytes", part="bases") > 0) is keep
            digests.append([snapshot.files for snapshot in client.snapshots()])
        assert computed(daemon) == ([0, 0, 0] if keep else [0, MATRICES, MATRICES])
    assert digests[0] == digests[1]


@pytest.mark.long
def test_after_a_rollback_and_a_restart(base: Path, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "state", base)
    with daemon, daemon.client() as client:
        for number in range(2):
            client.submit(make_checkpoint(tmp_path / f"task-{number}", base, seed=number), wait=True)
        daemon.wait_for_bases()
        client.rollback()
        wait_for(lambda: "the bases of v1 are ready" in daemon.log.read_text().rpartition("rolled back")[2], "them")
        for file in sorted((daemon.state / "bases").glob("*/*"))[1:]:
            file.unlink()
    daemon.log.unlink()
    with daemon, daemon.client() as client:
        daemon.wait_for_bases()
        assert len(kept(daemon)) == MATRICES
        client.submit(make_checkpoint(tmp_path / "task-2", base, seed=2), wait=True)
    assert computed(daemon) == [0]
