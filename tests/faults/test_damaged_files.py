"""What is acknowledged outlives loss and damage of the base and of the accumulated state: no submission is to blame."""

from collections.abc import Callable
from pathlib import Path

import pytest
from foldind.state.fsck import check_state

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


def flip_a_bit(path: Path) -> None:
    """Of a number in the middle of a file, as a disk may that reports no error."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param("base/model.safetensors", marks=pytest.mark.long),
        pytest.param("base/config.json", marks=pytest.mark.long),
        "merge/v1/accumulated.safetensors",
    ],
)
def test_nothing_is_merged_into_what_a_disk_has_altered(
    damaged: str, start_daemon: Callable[..., Daemon], base: Path, tmp_path: Path
) -> None:
    daemon = start_daemon(tmp_path / "state", base)
    with daemon.client() as client:
        client.submit(make_checkpoint(tmp_path / "first", base, seed=1), wait=True)
    daemon.terminate()
    file = daemon.state / damaged
    sound = file.read_bytes()
    flip_a_bit(file)
    with daemon.start().client() as client:
        submission = client.submit(make_checkpoint(tmp_path / "second", base, seed=2))
        wait_for(lambda: "is damaged" in client.status(submission.id).reason, "the pause")
        assert "foldind fsck" in client.status(submission.id).reason
        assert client.status(submission.id).attempts == 0
        file.write_bytes(sound)
        assert client.wait(submission.id).version == 2


@pytest.mark.long
def test_a_damaged_basis_is_computed_again(start_daemon: Callable[..., Daemon], base: Path, tmp_path: Path) -> None:
    daemon = start_daemon(tmp_path / "state", base)
    with daemon.client() as client:
        client.submit(make_checkpoint(tmp_path / "first", base, seed=1), wait=True)
    daemon.wait_for_bases()
    daemon.terminate()
    file = next((daemon.state / "bases").glob("*/*.safetensors"))
    sound = file.read_bytes()
    flip_a_bit(file)
    assert [str(file) in finding for finding in check_state(daemon.state, lambda what: None)] == [True]
    daemon.start()
    wait_for(lambda: file.is_file() and file.read_bytes() == sound, "the basis to be computed again")


def test_a_damaged_plan_is_said(base: Path, tmp_path: Path) -> None:
    foldind("init", "--backend", "numpy", "--base", str(base), "--state", str(tmp_path / "state"))
    (tmp_path / "state" / "plan.json").write_bytes(b"\0" * 100)
    ended = foldind("serve", "--state", str(tmp_path / "state"), check=False)
    assert ended.returncode == 1
    assert "plan.json is damaged or gone; restore the state folder from a backup" in ended.stderr
    assert "Traceback" not in ended.stderr
