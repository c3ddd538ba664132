"""What is kept, and what goes by itself."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from foldin.v1 import snapshots_pb2 as pb
from foldind.state.database import Database
from foldind.state.folder import StateFolder
from foldind.state.versions import Versions
from grpc import StatusCode

from tests.support.daemon import Daemon, foldind, wait_for
from tests.support.history import History
from tests.support.models import base_tensors
from tests.support.wire import SINGLE, Wire, fine_tuned, refused, single, state


def kept(wire: Wire) -> list[int]:
    snapshots = wire.snapshots.List(pb.ListSnapshotsRequest()).snapshots
    return [snapshot.version for snapshot in snapshots if snapshot.state != pb.SNAPSHOT_STATE_PRUNED]


def on_disk(wire: Wire) -> list[str]:
    return sorted(path.name for path in (wire.daemon.state / "snapshots").iterdir())


def test_the_newest_and_those_with_an_alias(tmp_path: Path, past: History, reopened: Callable[..., Wire]) -> None:
    folder = StateFolder(past.copy(tmp_path / "aliased"))
    with folder, Database(folder.ledger) as database:
        Versions(database).point("stable", 1)

    wire = reopened("--keep-snapshots", "2", "--lease", "0", state=folder.root)
    wait_for(lambda: kept(wire) == [1, 3, 4], "the retention policy to be applied")
    wait_for(lambda: on_disk(wire) == ["latest", "v1", "v3", "v4"], "the files to go")
    assert wire.read(1, SINGLE)

    pruned = wire.snapshot("v2")
    assert (pruned.state, list(pruned.files), list(pruned.aliases)) == (pb.SNAPSHOT_STATE_PRUNED, [], [])
    assert (pruned.parent, pruned.submissions, pruned.submission_name) == (1, 2, "task2"), "the record stays"
    with refused(StatusCode.NOT_FOUND, "v2", "no longer kept"):
        wire.read(2, SINGLE)
    with refused(StatusCode.FAILED_PRECONDITION, "v2", "no longer kept"):
        wire.point("stable", 2)

    wire.point("stable", 0)
    wait_for(lambda: kept(wire) == [3, 4], "the one without an alias to be pruned")
    submission = wire.upload(single(fine_tuned(base_tensors())))
    assert state(wire.settled(submission.id)) == "MERGED"
    wait_for(lambda: kept(wire) == [4, 5], "the next one to be pruned")
    wait_for(lambda: on_disk(wire) == ["latest", "v4", "v5"], "the files to go")
    assert wire.daemon.terminate() == 0
    assert foldind("fsck", "--state", str(folder.root)).returncode == 0


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, past: History) -> Iterator[Wire]:
    """A daemon that keeps little, and not for long."""
    flags = ("--keep-snapshots", "3", "--lease", "0")
    environment = {"FOLDIN_UPLOAD_EXPIRY": "0.01"}
    folder = past.copy(tmp_path_factory.mktemp("impatient") / "state")
    with Daemon(folder, None, *flags, environment=environment) as daemon, Wire(daemon) as wire:
        yield wire


def test_what_was_undone_goes_too(impatient: Wire) -> None:
    wait_for(lambda: kept(impatient) == [2, 3, 4], "the retention policy to be applied")
    impatient.rollback()
    wait_for(lambda: kept(impatient) == [2, 3], "the undone one to be pruned")
    assert impatient.snapshot().version == 3


def test_an_upload_that_is_never_completed(impatient: Wire, past: History) -> None:
    told = impatient.settled(past.receiving)
    assert state(told) == "WITHDRAWN"
    assert "not completed in time" in told.reason
    folder = impatient.daemon.state / "submissions" / past.receiving
    impatient.point("stable", 3)  # whatever happens sets the housekeeping going
    wait_for(lambda: not folder.exists(), "its bytes to go")
