"""The watched folder and the daemon's life: stopped, killed, without room, without events."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import Tensor

from tests.faults.disk import NotPermittedError, SmallDisk, small_disk
from tests.faults.evidence import read_ledger
from tests.support.daemon import BIN, foldind, wait_for
from tests.support.dropping import SETTINGS, Box, receipts_in
from tests.support.wire import SINGLE, Daemons, Wire, idle_worker, single

Checkpoint = Callable[[], dict[str, Tensor]]

WITHOUT_EVENTS = """
import errno, sys
from watchdog.observers import Observer

def schedule(*_, **__):
    raise OSError(errno.ENOSPC, "inotify watch limit reached")

Observer.schedule = schedule
from foldind.cli import app
app(sys.argv[1:])
"""


@pytest.fixture
def content(checkpoint: Checkpoint) -> bytes:
    """A good checkpoint in one file."""
    return single(checkpoint())[SINGLE]


@pytest.fixture
def start(start_daemon: Daemons, tmp_path: Path, base: Path) -> Callable[..., Box]:
    """Start a daemon that watches tmp_path/inbox; settings are added to those of the tests."""

    def start(**settings: str) -> Box:
        environment = {**SETTINGS, **{f"FOLDIN_{name.upper()}": value for name, value in settings.items()}}
        flags = ("--inbox", str(tmp_path / "inbox"))
        return Box(tmp_path / "inbox", start_daemon(tmp_path / "state", base, *flags, environment=environment))

    return start


def test_stopped_while_a_drop_is_queued_and_another_comes_meanwhile(
    start: Callable[..., Box], content: bytes, checkpoint: Checkpoint
) -> None:
    box = start(shutdown_grace="0")
    with idle_worker(box.daemon):
        box.write("a.safetensors", content)
        wait_for(lambda: ": folding 'a' into" in box.daemon.log.read_text(), "it to be taken up")
        assert box.daemon.terminate() == 0
    assert box.waiting() == {"a.safetensors"}
    box.write("b.safetensors", single(checkpoint())[SINGLE])
    box = start()
    assert box.accepted("a.safetensors")["version"] == 1
    assert box.accepted("b.safetensors")["version"] == 2
    assert [one.state for one in read_ledger(box.daemon.state).submissions] == ["MERGED", "MERGED"]


@pytest.mark.faults
def test_merged_while_the_daemon_stops(start: Callable[..., Box], content: bytes) -> None:
    box = start()
    with idle_worker(box.daemon):
        box.write("a.safetensors", content)
        wait_for(lambda: ": folding 'a' into" in box.daemon.log.read_text(), "it to be taken up")
        os.kill(box.daemon.pid, 15)
        wait_for(lambda: "stopping" in box.daemon.log.read_text(), "it to stop")
    box.daemon.terminate()
    assert box.waiting() == {"a.safetensors"}, "the inbox stops first"
    assert start().accepted("a.safetensors")["version"] == 1
    assert len(read_ledger(box.daemon.state).submissions) == 1


def test_quarantined(start: Callable[..., Box], content: bytes) -> None:
    box = start(max_attempts="1")
    with idle_worker(box.daemon):
        box.write("a.safetensors", content)
        wait_for(lambda: ": folding 'a' into" in box.daemon.log.read_text(), "it to be taken up")
        assert box.daemon.worker is not None
        box.daemon.worker.kill()
    receipt = box.receipt("a.safetensors")
    assert receipt["state"] == "QUARANTINED"
    assert f"foldin retry {receipt['submission']}" in receipt["reason"]
    with Wire(box.daemon) as wire:
        wire.retry(receipt["submission"])
        assert wire.settled(receipt["submission"]).version == 1


def test_without_events(
    start: Callable[..., Box], tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "foldind").write_text(f"#!{sys.executable}\n{WITHOUT_EVENTS}")
    (tmp_path / "bin" / "foldind").chmod(0o755)
    foldind("init", "--backend", "numpy", "--base", str(make_base_again(tmp_path)), "--state", str(tmp_path / "state"))
    monkeypatch.setattr("tests.support.daemon.BIN", tmp_path / "bin")
    box = start()
    wait_for(lambda: "no events from the inbox" in box.daemon.log.read_text(), "the warning")
    for name in ("a.safetensors", "b.safetensors"):
        box.write(name, single(checkpoint())[SINGLE])
        box.accepted(name)
    assert box.daemon.log.read_text().count("no events from the inbox") == 1


def make_base_again(tmp_path: Path) -> Path:
    from tests.support.models import make_base

    return make_base(tmp_path / "base")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        with small_disk(tmp_path / "state-disk", 100 * 1024 * 1024) as mounted:
            yield mounted
    except NotPermittedError as error:
        pytest.skip(f"needs the right to mount a tmpfs: {error}")


def test_no_room_for_a_copy(disk: SmallDisk, base: Path, tmp_path: Path, start_daemon: Daemons, content: bytes) -> None:
    daemon = start_daemon(disk.root / "state", base, "--inbox", str(tmp_path / "inbox"), environment=SETTINGS)
    box = Box(tmp_path / "inbox", daemon)
    try:
        wait_for((box.path / "accepted").is_dir, "the inbox to be made")
        disk.fill(leave=8 * 1024 * 1024)
        box.write("a.safetensors", content)
        wait_for(lambda: "stays in the inbox" in daemon.log.read_text(), "the log to tell")
        assert box.waiting() == {"a.safetensors"}
        disk.make_room()
        box.accepted("a.safetensors")
        assert daemon.log.read_text().count("stays in the inbox") == 1
    finally:
        daemon.kill()  # before the disk goes


@pytest.mark.long
def test_another_device_for_what_is_accepted(start: Callable[..., Box], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "inbox").mkdir()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        (tmp_path / "inbox" / "accepted").symlink_to(other)
        box = start()
        box.write_folder("task", {SINGLE: content, "notes.txt": b"x"})
        box.accepted("task")
        assert (Path(other) / "task" / SINGLE).read_bytes() == content
        assert (Path(other) / "task" / "notes.txt").exists()
        wait_for(lambda: not box.waiting(), "the original to be removed")


@pytest.mark.long
def test_a_mount_point_is_folded_once(start: Callable[..., Box], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "inbox").mkdir()
    try:
        with small_disk(tmp_path / "inbox" / "disk", 2**20):
            (tmp_path / "inbox" / "disk" / SINGLE).write_bytes(content)
            box = start()
            wait_for(lambda: "'disk' stays in the inbox" in box.daemon.log.read_text(), "the log to tell")
            (other := box.path / ".other").write_bytes(content)
            other.rename(box.path / "other.safetensors")
            box.accepted("other.safetensors")
            receipts = receipts_in(box.path / "accepted")
            assert sorted(path.name for path in receipts) == ["disk.json", "other.safetensors.json"]
            assert box.daemon.log.read_text().count("'disk' stays in the inbox") == 1
            assert len(read_ledger(box.daemon.state).versions) == 1
    except NotPermittedError as error:
        pytest.skip(f"needs the right to mount a tmpfs: {error}")


@pytest.mark.parametrize("place", ["state", "state/snapshots", "."])
def test_an_inbox_that_is_or_holds_the_state_folder(base: Path, tmp_path: Path, place: str) -> None:
    foldind("init", "--backend", "numpy", "--base", str(base), "--state", str(tmp_path / "state"))
    command = [BIN / "foldind", "serve", "--state", tmp_path / "state", "--grpc", "127.0.0.1:0"]
    result = subprocess.run(
        [*command, "--inbox", tmp_path / place], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert "lie in one another" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_inbox_that_cannot_be_made(base: Path, tmp_path: Path) -> None:
    foldind("init", "--backend", "numpy", "--base", str(base), "--state", str(tmp_path / "state"))
    (tmp_path / "file").write_text("")
    for place in ("file", "missing/inbox"):
        command = [BIN / "foldind", "serve", "--state", tmp_path / "state", "--inbox", tmp_path / place]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 1
        assert "cannot be used" in result.stderr
