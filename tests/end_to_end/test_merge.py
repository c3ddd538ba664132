"""The main job, through the client library and a real daemon."""

from pathlib import Path

import torch

from tests.support.daemon import Daemon, foldind
from tests.support.models import load_model, make_checkpoint


def test_first_merge_publishes_the_submission_itself(daemon: Daemon, base: Path, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "task", base, seed=1)
    with daemon.client() as client:
        submission = client.submit(checkpoint, name="task", wait=True)
        assert (submission.state, submission.version) == ("MERGED", 1)
        client.pull("latest", to=tmp_path / "merged")
    merged = load_model(tmp_path / "merged")
    for name, tensor in load_model(checkpoint).items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-7)


def test_several_merges_leave_a_state_in_order(daemon: Daemon, base: Path, tmp_path: Path) -> None:
    with daemon.client() as client:
        for number in range(1, 5):
            checkpoint = make_checkpoint(tmp_path / f"task{number}", base, seed=number)
            assert client.submit(checkpoint, name=f"task{number}", wait=True).version == number
        assert [snapshot.version for snapshot in client.snapshots()] == [1, 2, 3, 4]
    assert daemon.terminate() == 0
    assert foldind("fsck", "--state", str(daemon.state)).returncode == 0
