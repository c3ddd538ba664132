"""Undoing the newest version."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from foldin.v1 import snapshots_pb2 as pb
from grpc import StatusCode
from safetensors.torch import load

from tests.support.daemon import Daemon, foldind, wait_for
from tests.support.history import History
from tests.support.models import base_tensors
from tests.support.wire import SINGLE, Daemons, Wire, fine_tuned, idle_worker, refused, single, state


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, past: History) -> Iterator[Daemon]:
    with Daemon(past.copy(tmp_path_factory.mktemp("rollback") / "state")) as running:
        yield running


@pytest.fixture(scope="module")
def wire(daemon: Daemon) -> Iterator[Wire]:
    with Wire(daemon) as wire:
        yield wire


def checkpoint() -> dict[str, bytes]:
    return single(fine_tuned(base_tensors()))


def merge(wire: Wire, files: dict[str, bytes], **terms: object) -> int:
    submission = wire.settled(wire.upload(files, **terms).id)
    assert state(submission) == "MERGED"
    return submission.version


@pytest.fixture
def head(wire: Wire) -> int:
    """The number of the newest version, which was merged just now and can be undone."""
    merge(wire, checkpoint())
    return merge(wire, checkpoint())


def test_latest_moves_and_the_submission_is_withdrawn(daemon: Daemon, wire: Wire, head: int) -> None:
    before, newest = wire.snapshot(f"v{head - 1}"), wire.snapshot()
    done = wire.rollback()
    assert (done.undone, done.snapshot.version, list(done.snapshot.aliases)) == (head, head - 1, ["latest"])
    assert done.snapshot == wire.snapshot()
    assert (daemon.state / "snapshots" / "latest").readlink() == Path(f"v{head - 1}")

    undone = wire.get(newest.submission_id)
    assert state(undone) == "WITHDRAWN"
    assert f"v{head}" in undone.reason
    assert [event.state for event in undone.history] == [1, 2, 3, 4, 7]
    assert state(wire.get(before.submission_id)) == "MERGED"

    old = wire.snapshot(f"v{head}")
    assert (old.state, list(old.aliases), old.files) == (pb.SNAPSHOT_STATE_WITHDRAWN, [], newest.files)
    assert wire.read(head, SINGLE), "it stays readable until it is pruned"

    with refused(StatusCode.FAILED_PRECONDITION, f"v{head - 2}", "no longer kept"):
        wire.rollback()
    with refused(StatusCode.FAILED_PRECONDITION, f"v{head} is not the newest", f"v{head - 1}"):
        wire.rollback(head)
    assert wire.snapshot().version == head - 1


def test_only_the_newest(wire: Wire, head: int) -> None:
    for version in (1, head - 1, head + 1, 2**63, 2**64 - 1):
        with refused(StatusCode.FAILED_PRECONDITION, f"v{version} is not the newest"):
            wire.rollback(version)
    assert wire.snapshot().version == head
    assert wire.rollback(head).undone == head


def test_at_once_after_a_merge(wire: Wire) -> None:
    # What is MERGED is no longer being merged; a script that submits, measures and undoes relies on it.
    for _ in range(10):
        merged = merge(wire, checkpoint())
        assert wire.rollback().undone == merged


def test_merging_again_is_as_if_the_undone_one_had_never_been(daemon: Daemon, wire: Wire, head: int) -> None:
    def accumulated(version: int) -> bytes:
        return (daemon.state / "merge" / f"v{version}" / "accumulated.safetensors").read_bytes()

    undone, kept = checkpoint(), checkpoint()
    straight = merge(wire, kept, name="kept")
    expected, told = (wire.read(straight, SINGLE), accumulated(straight)), wire.snapshot()
    wire.rollback()
    assert merge(wire, undone, name="undone") == straight + 1, "numbers are not used again"
    assert wire.read(straight + 1, SINGLE) != expected[0]
    wire.rollback()
    again = merge(wire, kept, name="kept")
    assert again == straight + 2
    assert (wire.read(again, SINGLE), accumulated(again)) == expected
    snapshot = wire.snapshot()
    assert snapshot.parent == told.parent == head
    for name in ("lambda", "accumulated_norm", "task_vector_norm", "mean_task_vector_norm", "submissions"):
        assert getattr(snapshot, name) == getattr(told, name)
    assert f"| v{straight + 1} |" not in wire.read(again, "README.md").decode(), "what was undone is in no lineage"


def test_what_was_undone_may_come_again(wire: Wire, head: int) -> None:
    files = checkpoint()
    first = wire.settled(wire.upload(files).id)
    assert wire.create(files).submission.id == first.id
    wire.rollback()
    second = wire.upload(files)
    assert second.id != first.id
    assert wire.settled(second.id).version == head + 2


def test_not_while_a_merge_is_running(daemon: Daemon, wire: Wire, head: int) -> None:
    with idle_worker(daemon):
        submission = wire.upload(checkpoint())
        wait_for(lambda: state(wire.get(submission.id)) == "MERGING", "the merge to start")
        with refused(StatusCode.FAILED_PRECONDITION, "a merge is running"):
            wire.rollback()
    assert wire.settled(submission.id).version == head + 1


def test_not_after_a_merge_that_was_refused(wire: Wire, head: int) -> None:
    # The state before the newest version goes when the next merge starts, whatever comes of that one.
    assert state(wire.settled(wire.upload(single(base_tensors())).id)) == "REJECTED"
    with refused(StatusCode.FAILED_PRECONDITION, f"v{head - 1}", "no longer kept"):
        wire.rollback()
    assert wire.snapshot().version == head


def test_an_alias_stays_where_it_is(wire: Wire, head: int) -> None:
    wire.point("stable", head)
    wire.rollback()
    assert (wire.snapshot("stable").version, wire.snapshot().version) == (head, head - 1)
    assert list(wire.snapshot(f"v{head}").aliases) == ["stable"]


def test_of_the_first_and_a_fresh_start(past: History, tmp_path: Path, start_daemon: Daemons) -> None:
    with Wire(start_daemon(tmp_path / "state", past.base)) as wire:
        # Before the first merge there is nothing.
        assert wire.snapshots.List(pb.ListSnapshotsRequest()) == pb.ListSnapshotsResponse()
        for ref in ("", "latest"):
            with refused(StatusCode.NOT_FOUND, "nothing has been merged"):
                wire.snapshot(ref)
        with refused(StatusCode.NOT_FOUND, "v1"):
            wire.read(1, SINGLE)
        with refused(StatusCode.FAILED_PRECONDITION, "nothing is merged"):
            wire.rollback()
        watch = wire.snapshots.Watch(pb.WatchSnapshotsRequest())

        first, second = (fine_tuned(base_tensors()) for _ in range(2))
        assert merge(wire, single(first)) == 1
        assert next(watch).version == 1
        done = wire.rollback()
        assert (done.undone, done.HasField("snapshot")) == (1, False)
        with refused(StatusCode.NOT_FOUND, "nothing has been merged"):
            wire.snapshot()
        assert not (wire.daemon.state / "snapshots" / "latest").is_symlink()
        with refused(StatusCode.FAILED_PRECONDITION, "nothing is merged"):
            wire.rollback()

        # The next one starts from the base.
        assert merge(wire, single(second)) == 2
        assert next(watch).version == 2
        snapshot = wire.snapshot()
        assert (snapshot.parent, snapshot.submissions) == (0, 1)
        assert getattr(snapshot, "lambda") == pytest.approx(1, abs=1e-6)
        merged = load(wire.read(2, SINGLE))
        for name, tensor in second.items():
            torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-6)
        watch.cancel()
        assert wire.daemon.terminate() == 0
    assert foldind("fsck", "--state", str(tmp_path / "state")).returncode == 0
