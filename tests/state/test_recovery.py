"""What a start removes, and at what it stops."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from foldind.config import MergeSettings
from foldind.errors import StateError
from foldind.state.creation import create_state
from foldind.state.database import Database
from foldind.state.durable import REMOVED_SUFFIX, FileDigest
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger, NewSubmission
from foldind.state.recovery import missing_folders, point_latest, prune, recover, remove_dropped, unknown_paths
from foldind.state.versions import Versions

from tests.support.commands import command
from tests.support.history import VERSIONS, History

NEXT = f"v{VERSIONS + 1}"
HEAD = f"v{VERSIONS}"


@contextmanager
def opened(folder: StateFolder) -> Iterator[tuple[Ledger, Versions]]:
    with folder, Database(folder.ledger) as database:
        yield Ledger(database), Versions(database)


def recovered(folder: StateFolder) -> None:
    with opened(folder) as (ledger, versions):
        recover(folder, ledger, versions)


def contents(folder: StateFolder) -> set[str]:
    """Every path in a state folder but the database's own."""
    return {
        str(path.relative_to(folder.root))
        for path in folder.root.rglob("*")
        if not path.name.startswith("ledger.sqlite-") and path.name != "lock"
    }


def folder_with_a_file(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"half")


def queue(folder: StateFolder) -> str:
    """Put a submission into the queue, with its bytes."""
    with opened(folder) as (ledger, _):
        submission = ledger.create(NewSubmission({"model.safetensors": FileDigest(4, "")}))
        folder_with_a_file(folder.submission(submission.id))
        return ledger.enqueue(submission.id, submission.files, submission.id).id


def test_what_is_in_order_stays_as_it_is(folder: StateFolder) -> None:
    before = contents(folder)
    recovered(folder)
    assert contents(folder) == before


LEFT_OVER: dict[str, Callable[[StateFolder, History], None]] = {
    "a temporary state": lambda folder, _: folder_with_a_file(folder.merge / f"{NEXT}.0123abcd.tmp"),
    "a temporary snapshot": lambda folder, _: folder_with_a_file(folder.snapshots / f"{NEXT}.0123abcd.tmp"),
    "a sealed state": lambda folder, _: folder_with_a_file(folder.merge / NEXT),
    "a sealed snapshot": lambda folder, _: folder_with_a_file(folder.snapshots / NEXT),
    "a temporary link": lambda folder, _: (folder.snapshots / ".latest.tmp").symlink_to("v9"),
    "a submission being copied": lambda folder, _: folder_with_a_file(folder.submissions / "0123abcd.tmp"),
    "bytes of a merged submission": lambda folder, past: folder_with_a_file(folder.submission(past.merged[0])),
    "bytes of a rejected submission": lambda folder, past: folder_with_a_file(folder.submission(past.rejected)),
    "bytes of a withdrawn submission": lambda folder, past: folder_with_a_file(folder.submission(past.withdrawn)),
}


def test_what_was_half_removed_goes_at_the_next_look(folder: StateFolder) -> None:
    before = contents(folder)
    places = (folder.snapshots / "v1", folder.merge / "v3", folder.submissions / "0123abcd")
    with opened(folder) as (ledger, versions):
        for place in places:
            folder_with_a_file(place.with_name(place.name + REMOVED_SUFFIX))
        folder_with_a_file(folder.submissions / "4567.tmp")
        remove_dropped(folder, ledger, versions)
        assert contents(folder) - before == {"submissions/4567.tmp", "submissions/4567.tmp/model.safetensors"}
    recovered(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("what", LEFT_OVER)
def test_left_over(folder: StateFolder, past: History, what: str) -> None:
    before = contents(folder)
    LEFT_OVER[what](folder, past)
    assert contents(folder) > before
    recovered(folder)
    assert contents(folder) == before


def test_everything_left_over_at_once(folder: StateFolder, past: History) -> None:
    before = contents(folder)
    for leave in LEFT_OVER.values():
        leave(folder, past)
    recovered(folder)
    assert contents(folder) == before


def test_files_of_a_pruned_version(folder: StateFolder) -> None:
    with opened(folder) as (_, versions):
        assert versions.prune(1, time.time() + 1) == [1, 2]  # and the power fails before the files are deleted
    recovered(folder)
    assert folder.snapshot_versions() == [3, 4]


@pytest.mark.parametrize("target", [None, "v1", "v99"])
def test_latest_is_pointed_anew(folder: StateFolder, target: str | None) -> None:
    link = folder.snapshots / "latest"
    link.unlink()
    if target:
        link.symlink_to(target)
    recovered(folder)
    assert link.readlink() == Path(HEAD)


def test_latest_without_a_version(folder: StateFolder) -> None:
    with opened(folder) as (_, versions):
        for version in reversed(versions.all()):
            versions.undo(version)
        point_latest(folder, versions)
    assert not (folder.snapshots / "latest").is_symlink()


@pytest.mark.parametrize("name", ["merge", "submissions", "snapshots"])
def test_an_empty_folder_that_a_backup_left_out(tmp_path: Path, past: History, name: str) -> None:
    create_state(past.base, tmp_path / "state", MergeSettings(), lambda what: None)
    folder = StateFolder(tmp_path / "state")
    (folder.root / name).rmdir()
    recovered(folder)
    assert (folder.root / name).is_dir()


def test_bytes_that_are_still_needed_stay(folder: StateFolder, past: History) -> None:
    queued = queue(folder)
    recovered(folder)
    assert (folder.submission(queued) / "model.safetensors").read_bytes() == b"half"
    assert folder.submission(past.receiving).is_dir()


UNKNOWN = ["snapshots/v99", "snapshots/mine", "merge/v99", "merge/backup", "submissions/mine", "snapshots/v0"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown(folder: StateFolder, name: str) -> None:
    folder_with_a_file(folder.root / name)
    before = contents(folder)
    with pytest.raises(StateError, match=f"does not know of .*{name}.*move it out"):
        recovered(folder)
    assert contents(folder) == before, "a person has to look: nothing is touched"


def test_several_unknown_ones(folder: StateFolder) -> None:
    for name in UNKNOWN:
        folder_with_a_file(folder.root / name)
    with pytest.raises(StateError, match=f"and {len(UNKNOWN) - 1} more"):
        recovered(folder)


@pytest.mark.parametrize("name", ["snapshots/v1", f"snapshots/{HEAD}", f"merge/{HEAD}"])
def test_missing(folder: StateFolder, name: str) -> None:
    shutil.rmtree(folder.root / name)
    before = contents(folder)
    with pytest.raises(StateError, match=f"records .*{name}, which is not there.*backup"):
        recovered(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"half")])
def test_a_base_that_is_damaged(folder: StateFolder, damage: Callable[[Path], object]) -> None:
    damage(folder.base / "model.safetensors")
    before = contents(folder)
    with pytest.raises(StateError, match=r"base .*damaged or gone.*model\.safetensors.*backup"):
        recovered(folder)
    assert contents(folder) == before


def test_the_state_before_the_newest_version_may_be_missing(folder: StateFolder) -> None:
    shutil.rmtree(folder.accumulated(VERSIONS - 1))
    recovered(folder)


def test_missing_bytes_of_a_queued_submission(folder: StateFolder) -> None:
    queued = queue(folder)
    shutil.rmtree(folder.submission(queued))
    with pytest.raises(StateError, match=f"records .*{queued}, which is not there"):
        recovered(folder)


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_without_its_ledger_nothing_is_touched(folder: StateFolder, how: str) -> None:
    # What a careless copy or a restore leaves; a new, empty ledger would take v1 for a leftover and delete it.
    for version in range(2, VERSIONS + 1):
        shutil.rmtree(folder.snapshot(version))
        shutil.rmtree(folder.accumulated(version), ignore_errors=True)
    for path in folder.submissions.iterdir():
        shutil.rmtree(path)
    folder.ledger.unlink()
    if how == "empty":
        folder.ledger.touch()
    before = contents(folder)
    for name in ("fsck", "serve"):
        ended = command(name, "--state", folder.root)
        assert contents(folder) == before, name
        assert ended.status == 1
        assert "ledger" in ended.stderr


def test_the_daemon_stops_with_a_sentence(folder: StateFolder) -> None:
    folder_with_a_file(folder.root / "snapshots" / "v99")
    ended = command("serve", "--state", folder.root)
    assert ended.status == 1
    assert "v99" in ended.stderr
    assert "move it out" in ended.stderr


def test_prune_deletes_what_it_marks(folder: StateFolder) -> None:
    with opened(folder) as (ledger, versions):
        assert prune(folder, versions, 2, lease=3600) == []
        assert prune(folder, versions, 2, lease=0) == [1, 2]
        assert folder.snapshot_versions() == [3, 4]
        assert missing_folders(folder, ledger, versions) == []
        assert unknown_paths(folder, ledger, versions) == []
