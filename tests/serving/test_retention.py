"""Which snapshots are kept."""

from collections.abc import Callable
from pathlib import Path

from foldin.v1 import snapshots_pb2 as pb
from grpc import StatusCode

from tests.intake.wire import SINGLE, Wire, end, fine_tuned, refused, single, state
from tests.support.daemon import foldind, wait_for
from tests.support.models import base_tensors

Reopened = Callable[..., Wire]


def kept(wire: Wire) -> list[int]:
    snapshots = wire.snapshots.List(pb.ListSnapshotsRequest()).snapshots
    return [snapshot.version for snapshot in snapshots if snapshot.state != pb.SNAPSHOT_STATE_PRUNED]


def on_disk(wire: Wire) -> list[str]:
    return sorted(path.name for path in (wire.daemon.state / "snapshots").iterdir())


def test_the_newest_and_those_with_an_alias(reopened: Reopened) -> None:
    first = reopened()
    first.point("stable", 1)
    state_folder: Path = first.daemon.state
    end(first.daemon)

    wire = reopened("--keep-snapshots", "2", "--lease", "0", state=state_folder)
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
    assert foldind("fsck", "--state", str(state_folder)).returncode == 0


def test_what_was_undone_goes_too(reopened: Reopened) -> None:
    wire = reopened("--keep-snapshots", "3", "--lease", "0")
    wait_for(lambda: kept(wire) == [2, 3, 4], "the retention policy to be applied")
    wire.rollback()
    wait_for(lambda: kept(wire) == [2, 3], "the undone one to be pruned")
    assert wire.snapshot().version == 3
    assert wire.daemon.terminate() == 0
    assert foldind("fsck", "--state", str(wire.daemon.state)).returncode == 0
    assert reopened(state=wire.daemon.state).snapshot().version == 3
