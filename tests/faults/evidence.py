"""What a state folder shows: the ledger, read from a copy so that nothing changes, and the invariants of the rest."""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from foldin import Client, ServerUnavailable, Snapshot
from foldind.intake.uploads import RECEIVED_SUFFIX
from foldind.state.database import Database
from foldind.state.durable import TEMPORARY_SUFFIX, digest_file
from foldind.state.fsck import check_state
from foldind.state.ledger import Ledger
from foldind.state.records import Submission, SubmissionState, Version
from foldind.state.versions import Versions
from safetensors.numpy import load_file

from tests.support.daemon import foldind

TENSOR_FILES = ".safetensors"

T = TypeVar("T")

Digests = Mapping[int, Mapping[str, str]]
"""Version -> path of a tensor file in the state folder -> SHA-256."""


@dataclass(frozen=True)
class LedgerContent:
    """Everything the ledger says."""

    submissions: Sequence[Submission]
    """In the order of their place in the queue; those without a place come first."""
    versions: Sequence[Version]
    latest: int

    @property
    def queue(self) -> list[Submission]:
        """Those that were ever acknowledged, in the order in which they were."""
        return [submission for submission in self.submissions if submission.state is not SubmissionState.RECEIVING]


def read_ledger(state: Path) -> LedgerContent:
    """Read the ledger of a state folder, whatever a kill left of it or while it is in use, without touching it."""
    with tempfile.TemporaryDirectory() as copies:
        # What goes from the log to the database between the two copies is then in both, never in neither.
        for name in ("ledger.sqlite-wal", "ledger.sqlite"):
            if (state / name).exists():
                shutil.copy(state / name, copies)
        with Database(Path(copies) / "ledger.sqlite") as database:
            ledger, versions = Ledger(database), Versions(database)
            rows = database.query("SELECT id FROM submissions ORDER BY place, number")
            head = versions.head()
            return LedgerContent([ledger.get(row["id"]) for row in rows], versions.all(), head.version if head else 0)


def tensor_digests(state: Path) -> Digests:
    """Return what the ledger records of the tensor files of every version."""
    return {
        version.version: {
            **{f"merge/{name}": digest.sha256 for name, digest in version.state_files.items()},
            **{
                f"snapshots/{name}": digest.sha256
                for name, digest in version.files.items()
                if name.endswith(TENSOR_FILES)
            },
        }
        for version in read_ledger(state).versions
    }


def chunks_received(state: Path) -> int:
    """Return how many chunks of uploads that are not complete lie in a state folder."""
    return sum(path.read_bytes().count(1) for path in state.glob(f"submissions/*/*{RECEIVED_SUFFIX}"))


def check_files_are(state: Path, reference: Digests) -> None:
    """Check that every tensor file that is there is byte for byte the one of an uninterrupted run."""
    for version, digests in tensor_digests(state).items():
        assert digests == reference[version], f"v{version} differs from that of an uninterrupted run"
        for name, sha256 in digests.items():
            folder, file = name.split("/", 1)
            path = state / folder / f"v{version}" / file
            if path.parent.exists():
                assert digest_file(path).sha256 == sha256, path


def check_stopped(state: Path) -> None:
    """Check a state folder that no daemon serves, just after a kill: nothing is wrong with it."""
    assert check_state(state, lambda _: None) == []


def check_with_fsck(state: Path) -> None:
    """As `check_stopped`, with the command that operators use."""
    result = foldind("fsck", "--state", str(state), check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == ""


def check_no_leftovers(state: Path) -> None:
    """Check that recovery removed whatever has a temporary name, and all that the ledger does not know."""
    assert list(state.rglob(f"*{TEMPORARY_SUFFIX}*")) == []
    merge, snapshots, submissions = (_names(state / room) for room in ("merge", "snapshots", "submissions"))
    content = read_ledger(state)
    versions = {f"v{version.version}" for version in content.versions}
    assert merge <= versions
    assert snapshots <= versions | {"latest"}
    assert submissions <= {submission.id for submission in content.submissions if submission.bytes_kept}


def check_latest(state: Path) -> None:
    """Check that snapshots/latest names the newest version."""
    link = state / "snapshots" / "latest"
    before, latest = _target(link), read_ledger(state).latest
    assert (f"v{latest}" if latest else "") in (before, _target(link))
    assert not latest or (link / "model.safetensors").is_file()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _target(link: Path) -> str:
    return str(link.readlink()) if link.is_symlink() else ""


def check_served(client: Client, state: Path) -> None:
    """Check that every snapshot listed is on the disk as it was listed, and loads."""
    for snapshot in answer_of(client.snapshots):
        if snapshot.state == "PRUNED":
            continue
        try:
            _check_snapshot(snapshot, state)
        except FileNotFoundError:  # pruned just now?
            assert client.show(f"v{snapshot.version}").state == "PRUNED"


def answer_of(call: Callable[[], T]) -> T:
    """Return what a daemon that serves answers.

    A channel to an address that just refused one of this process does not try again for a moment.
    """
    deadline = time.monotonic() + 30
    while True:
        try:
            return call()
        except ServerUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _check_snapshot(snapshot: Snapshot, state: Path) -> None:
    folder = state / "snapshots" / f"v{snapshot.version}"
    for file in snapshot.files:
        found = digest_file(folder / file.name)
        assert (found.size, found.sha256) == (file.size, file.sha256), folder / file.name
    assert load_file(folder / "model.safetensors")
    assert load_file(folder / "adapter" / "adapter_model.safetensors")
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {file.name for file in snapshot.files}


def check_all_merged_in_order(state: Path, submission_ids: Sequence[str]) -> None:
    """Check that the submissions, and no others, were merged, each once, in this order."""
    content = read_ledger(state)
    assert [(submission.id, submission.state, submission.version) for submission in content.submissions] == [
        (submission_id, SubmissionState.MERGED, version) for version, submission_id in enumerate(submission_ids, 1)
    ]
    assert [version.submission_id for version in content.versions] == list(submission_ids)
    assert [version.parent for version in content.versions] == list(range(len(submission_ids)))
    assert [version.submissions for version in content.versions] == list(range(1, len(submission_ids) + 1))
