"""What is acknowledged outlives the loss of the base and of the accumulated state: no submission is to blame."""

from collections.abc import Callable
from pathlib import Path

from tests.support.daemon import Daemon, foldind, wait_for
from tests.support.models import make_checkpoint


def test_the_base_is_lost_while_the_daemon_runs(daemon: Daemon, base: Path, tmp_path: Path) -> None:
    kept = daemon.state / "base"
    with daemon.client() as client:
        client.submit(make_checkpoint(tmp_path / "first", base, seed=1), wait=True)
        kept.rename(tmp_path / "away")
        submission = client.submit(make_checkpoint(tmp_path / "second", base, seed=2))
        wait_for(lambda: "the base is damaged or gone" in client.status(submission.id).reason, "the pause")
        assert client.status(submission.id).attempts == 0
        (tmp_path / "away").rename(kept)
        assert client.wait(submission.id).version == 2


def test_the_daemon_does_not_start_without_its_base(base: Path, tmp_path: Path) -> None:
    foldind("init", "--backend", "numpy", "--base", str(base), "--state", str(tmp_path / "state"))
    (tmp_path / "state" / "base").rename(tmp_path / "away")
    ended = foldind("serve", "--state", str(tmp_path / "state"), check=False)
    assert ended.returncode == 1
    assert "is damaged or gone" in ended.stderr
    assert "backup" in ended.stderr


def test_the_accumulated_state_is_lost(start_daemon: Callable[..., Daemon], base: Path, tmp_path: Path) -> None:
    daemon = start_daemon(tmp_path / "state", base)
    with daemon.client() as client:
        client.submit(make_checkpoint(tmp_path / "first", base, seed=1), wait=True)
        accumulated = daemon.state / "merge" / "v1" / "accumulated.safetensors"
        accumulated.rename(tmp_path / "away")
        submission = client.submit(make_checkpoint(tmp_path / "second", base, seed=2))
        wait_for(lambda: "the accumulated state is damaged" in client.status(submission.id).reason, "the pause")
        (tmp_path / "away").rename(accumulated)
        assert client.wait(submission.id).version == 2
