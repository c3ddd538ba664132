"""A state folder that is not as it should be: refused with a sentence that says what to do, and found by fsck."""

import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from foldin import FoldinError
from foldind.state.fsck import check_state

from tests.faults.processes import FaultDaemon
from tests.faults.reference import Prepared, Reference
from tests.support.daemon import BIN, foldind, wait_for

MakeDaemon = Callable[..., FaultDaemon]
Damage = Callable[[Path], None]


@pytest.fixture
def state(reference: Reference, tmp_path: Path) -> Path:
    """A state folder with two submissions merged."""
    return reference.two_merged.copy(tmp_path)


def refusal(*arguments: str) -> str:
    """Run a command that has to end with a sentence, and return that."""
    result = foldind(*arguments, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    sentence = result.stderr.splitlines()[-1]
    assert sentence.startswith("foldind: "), result.stderr
    return sentence


def test_two_daemons_do_not_share_a_state_folder(state: Path, fault_daemon: MakeDaemon) -> None:
    daemon = fault_daemon(state).start()
    sentence = "is in use by another process; stop the daemon that serves it first"
    assert sentence in refusal("serve", "--state", str(state), "--grpc", "127.0.0.1:0")
    assert sentence in refusal("fsck", "--state", str(state))
    with daemon.client() as client:
        assert client.show().version == 2


def test_two_daemons_do_not_share_an_address(reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = fault_daemon(reference.two_merged.copy(tmp_path / "one")).start()
    second = reference.two_merged.copy(tmp_path / "two")
    assert "choose one with --grpc" in refusal("serve", "--state", str(second), "--grpc", first.server)


def test_a_backup_restored_beneath_a_running_daemon_is_left_alone(
    reference: Reference, state: Path, tmp_path: Path, fault_daemon: MakeDaemon
) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(state, backup, symlinks=True)
    shutil.copytree(backup / "snapshots" / "v1", backup / "snapshots" / "v9")  # as of a later time
    daemon = fault_daemon(state).start()
    with daemon.client() as client:
        state.rename(tmp_path / "away")
        backup.rename(state)
        before = {str(path) for path in state.rglob("*")}
        with pytest.raises(FoldinError, match="not the folder that this daemon started with"):
            client.submit(reference.checkpoints[2])
        client.set_alias("stable", 2)  # wakes it
        daemon.wait_for_line("this daemon started with; stop the daemon before")
        assert before <= {str(path) for path in state.rglob("*")}
        state.rename(backup)
        (tmp_path / "away").rename(state)
        assert client.submit(reference.checkpoints[2], wait=True).version == 3


def test_what_the_daemon_may_not_do_is_no_fault_of_a_submission(
    reference: Reference, state: Path, tmp_path: Path, fault_daemon: MakeDaemon
) -> None:
    daemon = fault_daemon(state).start()
    with daemon.client() as client:
        (state / "merge").rename(tmp_path / "away")
        (state / "merge").touch()
        sent = client.submit(reference.checkpoints[2])
        wait_for(lambda: "paused: " in client.status(sent.id).reason, "the pause")
        assert (client.status(sent.id).attempts, client.status(sent.id).state) == (0, "QUEUED")
        (state / "merge").unlink()
        (tmp_path / "away").rename(state / "merge")
        assert client.wait(sent.id).version == 3


def make(path: str) -> Damage:
    def damage(state: Path) -> None:
        (state / path).mkdir()

    return damage


def delete(path: str) -> Damage:
    def damage(state: Path) -> None:
        shutil.rmtree(state / path)

    return damage


def flip_a_byte(path: str) -> Damage:
    def damage(state: Path) -> None:
        with (state / path).open("r+b") as file:
            file.seek(-100, 2)
            [byte] = file.read(1)
            file.seek(-100, 2)
            file.write(bytes([byte ^ 1]))

    return damage


def write(path: str, text: str) -> Damage:
    def damage(state: Path) -> None:
        (state / path).write_text(text)

    return damage


def replace(path: str, old: str, new: str) -> Damage:
    def damage(state: Path) -> None:
        text = (state / path).read_text()
        assert old in text
        (state / path).write_text(text.replace(old, new, 1))

    return damage


def change_ledger(statement: str) -> Damage:
    def damage(state: Path) -> None:
        with closing(sqlite3.connect(state / "ledger.sqlite")) as connection, connection:
            assert connection.execute(statement).rowcount > 0

    return damage


def zero_a_page(path: str) -> Damage:
    def damage(state: Path) -> None:
        content = bytearray((state / path).read_bytes())
        content[2 * 4096 : 3 * 4096] = bytes(4096)
        (state / path).write_bytes(content)

    return damage


MOVE = "move it out of the state folder"
RESTORE = "restore the state folder from a backup"

REFUSED = {
    "unknown_snapshot": (make("snapshots/v7"), "does not know of", "snapshots/v7", MOVE),
    "unknown_state": (make("merge/mine"), "does not know of", "merge/mine", MOVE),
    "unknown_submission": (make("submissions/0123"), "does not know of", "submissions/0123", MOVE),
    "missing_snapshot": (delete("snapshots/v1"), "records", "snapshots/v1", RESTORE),
    "missing_accumulated_state": (delete("merge/v2"), "records", "merge/v2", RESTORE),
    "missing_submission": (
        change_ledger("UPDATE submissions SET state = 'QUEUED', bytes_kept = 1 WHERE version = 2"),
        "records",
        "submissions/",
        RESTORE,
    ),
    "torn_ledger": (write("ledger.sqlite", "no database"), "ledger", "cannot be opened", RESTORE),
    "damaged_ledger": (zero_a_page("ledger.sqlite"), "ledger", "is damaged", RESTORE),
}


@pytest.mark.parametrize(("damage", "words"), [(case[0], case[1:]) for case in REFUSED.values()], ids=REFUSED)
def test_daemon_does_not_start(state: Path, damage: Damage, words: tuple[str, ...]) -> None:
    damage(state)
    sentence = refusal("serve", "--state", str(state), "--grpc", "127.0.0.1:0")
    assert [word for word in words if word not in sentence] == [], sentence


FOUND = {
    "byte_of_a_snapshot": (flip_a_byte("snapshots/v1/model.safetensors"), "snapshots/v1/model.safetensors"),
    "byte_of_a_model_card": (flip_a_byte("snapshots/v2/README.md"), "snapshots/v2/README.md"),
    "byte_of_the_accumulated_state": (flip_a_byte("merge/v2/accumulated.safetensors"), "merge/v2/accumulated"),
    "byte_of_the_base": (flip_a_byte("base/model.safetensors"), "base"),
    "configuration_of_the_base": (replace("base/config.json", "tiny", "huge"), "base"),
    "extra_file": (write("snapshots/v1/pytorch_model.bin", ""), "snapshots/v1/pytorch_model.bin"),
    "missing_file": (lambda state: (state / "snapshots/v2/config.json").unlink(), "snapshots/v2/config.json"),
    "changed_plan": (replace("plan.json", "projected", "summed"), "plan.json"),
    "unknown_folder": (make("snapshots/v7"), "snapshots/v7"),
    "missing_snapshot": (delete("snapshots/v1"), "snapshots/v1"),
    "missing_accumulated_state": (delete("merge/v2"), "merge/v2"),
    "submission_in_no_version": (change_ledger("UPDATE submissions SET version = 0 WHERE version = 2"), "submission "),
    "submission_in_a_version_that_is_not": (
        change_ledger("UPDATE submissions SET version = 9 WHERE version = 2"),
        "submission ",
    ),
    "version_whose_submission_waits": (
        change_ledger("UPDATE submissions SET state = 'RECEIVING', version = 0 WHERE version = 2"),
        "v2",
    ),
    "queued_without_bytes": (
        change_ledger("UPDATE submissions SET state = 'QUEUED', bytes_kept = 1 WHERE version = 2"),
        "submissions/",
    ),
    "parent_that_is_not": (change_ledger("UPDATE versions SET parent = 7 WHERE version = 2"), "v2"),
    "latest_that_is_old": (change_ledger("UPDATE aliases SET version = 1 WHERE name = 'latest'"), "v2"),
}


@pytest.mark.parametrize(("damage", "words"), FOUND.values(), ids=FOUND)
def test_fsck_finds(state: Path, damage: Damage, words: str) -> None:
    damage(state)
    findings = check_state(state, lambda _: None)
    assert any(words in finding for finding in findings), findings


def test_fsck_prints_what_it_finds(state: Path) -> None:
    result = foldind("fsck", "--state", str(state))
    assert (result.stdout, result.stderr.split()[-3:]) == ("", ["is", "in", "order"])
    flip_a_byte("snapshots/v1/model.safetensors")(state)
    result = foldind("fsck", "--state", str(state), check=False)
    assert result.returncode == 1
    assert "snapshots/v1/model.safetensors: " in result.stdout
    assert "1 finding" in result.stderr


def test_init_that_was_killed_leaves_nothing_in_the_way(large: Prepared, tmp_path: Path) -> None:
    state, temporary = tmp_path / "made", tmp_path / ".made.tmp"
    arguments = ("init", "--backend", "numpy", "--base", str(large.state / "base"), "--state", str(state))
    with subprocess.Popen([BIN / "foldind", *arguments], stderr=subprocess.DEVNULL) as process:
        wait_for(temporary.exists, "it to begin")
        process.kill()
    assert not state.exists()
    foldind(*arguments)
    assert not temporary.exists()
    assert check_state(state, lambda _: None) == []
