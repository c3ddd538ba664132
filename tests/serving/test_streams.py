"""Streams: of what changes, and of files."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from foldin.v1 import snapshots_pb2, submissions_pb2
from grpc import StatusCode
from safetensors.torch import save_file
from torch import Tensor

from tests.support.daemon import Daemon, wait_for
from tests.support.wire import CHUNK, SECONDS, SINGLE, Wire, fine_tuned, idle_worker, refused, single, state

LAYERS = 12
WIDTH = 256


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Of a model whose second merge takes long enough to be watched."""
    generator = torch.Generator().manual_seed(3)
    return {f"layer.{number}.weight": torch.randn(WIDTH, WIDTH, generator=generator) for number in range(LAYERS)}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("watch")
    (folder / "base").mkdir()
    save_file(tensors, folder / "base" / SINGLE)
    with Daemon(folder / "state", folder / "base") as running:
        yield running


@pytest.fixture(scope="module")
def wire(daemon: Daemon) -> Iterator[Wire]:
    with Wire(daemon) as wire:
        yield wire


def watch_latest(wire: Wire, alias: str = "") -> Iterator[snapshots_pb2.Snapshot]:
    return wire.snapshots.Watch(snapshots_pb2.WatchSnapshotsRequest(alias=alias), timeout=SECONDS)


def test_a_submission_from_receiving_to_merged(daemon: Daemon, wire: Wire, tensors: dict[str, Tensor]) -> None:
    assert state(wire.settled(wire.upload(single(fine_tuned(tensors))).id)) == "MERGED"
    files = single(fine_tuned(tensors))
    opened = wire.create(files).submission
    stream = wire.submissions.Watch(submissions_pb2.WatchSubmissionRequest(id=opened.id), timeout=SECONDS)
    first = next(stream)
    assert first == opened
    told = [first]
    with idle_worker(daemon):
        wire.send(opened.id, files)
        wire.commit(opened.id, files)
        while state(told[-1]) != "MERGING":
            told.append(next(stream))
    told += stream
    states = [state(submission) for submission in told]
    assert list(dict.fromkeys(states)) in (
        ["RECEIVING", "QUEUED", "MERGING", "MERGED"],
        ["RECEIVING", "MERGING", "MERGED"],  # it did not wait long enough to be seen
    )
    assert states == sorted(states, key=["RECEIVING", "QUEUED", "MERGING", "MERGED"].index)
    assert told[-1].version == 2
    assert not told[-1].HasField("progress")

    progress = [submission.progress for submission in told if submission.HasField("progress")]
    assert progress, "a merge of this size is seen at work"
    assert {step.stage for step in progress} <= {"folding", "publishing"}
    assert all(0 < step.done <= step.total == LAYERS for step in progress)
    assert all(step.tensor in tensors for step in progress)
    order = [(step.stage == "publishing", step.done) for step in progress]
    assert order == sorted(order)
    assert all(a != b for a, b in pairwise(told)), "each message tells something new"


def test_what_is_settled_is_told_once(wire: Wire) -> None:
    submission = wire.upload({SINGLE: b"no tensors"})
    (told,) = wire.watch(submission.id)
    assert (state(told), told.reason) == ("REJECTED", submission.reason)


def test_a_withdrawal_ends_the_stream(wire: Wire) -> None:
    opened = wire.create({SINGLE: b"1" * CHUNK}, digests=False).submission
    stream = wire.submissions.Watch(submissions_pb2.WatchSubmissionRequest(id=opened.id), timeout=SECONDS)
    assert state(next(stream)) == "RECEIVING"
    wire.withdraw(opened.id)
    assert [state(submission) for submission in stream] == ["WITHDRAWN"]


def test_an_unknown_submission(wire: Wire) -> None:
    with refused(StatusCode.NOT_FOUND, "nowhere"):
        wire.watch("nowhere")


def test_many_watchers_of_one(wire: Wire, tensors: dict[str, Tensor], daemon: Daemon) -> None:
    with idle_worker(daemon):
        submission = wire.upload(single(fine_tuned(tensors)))
        request = submissions_pb2.WatchSubmissionRequest(id=submission.id)
        streams = [wire.submissions.Watch(request, timeout=SECONDS) for _ in range(20)]
        assert all(state(next(stream)) in ("QUEUED", "MERGING") for stream in streams)
    assert all(state(list(stream)[-1]) == "MERGED" for stream in streams)


def test_snapshots_over_several_merges(wire: Wire, tensors: dict[str, Tensor]) -> None:
    before = wire.snapshot()
    stream = watch_latest(wire)
    assert next(stream) == before, "the present one at once"
    for number in range(before.version + 1, before.version + 4):
        uploaded = wire.upload(single(fine_tuned(tensors)))
        snapshot = next(stream)
        assert (snapshot.version, snapshot.submission_id) == (number, uploaded.id)
        assert "latest" in snapshot.aliases
        assert snapshot.files
    stream.cancel()


def test_an_alias_that_is_set_moved_and_removed(wire: Wire) -> None:
    stream = watch_latest(wire, "followed")
    newest = wire.snapshot().version
    for version in (1, newest, 1):
        wire.point("followed", version)
        assert next(stream).version == version
    wire.point("followed", 0)
    wire.point("followed", newest)
    assert next(stream).version == newest
    stream.cancel()


def test_a_rollback_is_told(wire: Wire, tensors: dict[str, Tensor]) -> None:
    for _ in range(2):
        merged = wire.settled(wire.upload(single(fine_tuned(tensors))).id).version
    stream = watch_latest(wire, "latest")
    assert next(stream).version == merged
    assert wire.rollback().undone == merged
    assert next(stream).version == merged - 1
    stream.cancel()


@pytest.mark.parametrize("alias", ["v1", "3", "Latest", "a b"])
def test_what_cannot_be_an_alias(wire: Wire, alias: str) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "alias"):
        next(watch_latest(wire, alias))


def test_watchers_that_left_are_forgotten(wire: Wire, daemon: Daemon) -> None:
    def threads() -> int:
        return len(list(Path(f"/proc/{daemon.pid}/task").iterdir()))

    streams = [watch_latest(wire) for _ in range(50)]
    for stream in streams:
        next(stream)
    busy = threads()
    for stream in streams:
        stream.cancel()
    wire.point("followed", 1)
    wait_for(lambda: threads() <= busy, "no thread to be left for them")
    assert wire.snapshot("followed").version == 1


def test_large_files_come_in_pieces_of_a_mebibyte(wire: Wire) -> None:
    (size,) = (file.size for file in wire.snapshot().files if file.name == SINGLE)
    assert size > 2**20
    for offset in (0, 3, size - 1):
        request = snapshots_pb2.ReadFileRequest(version=wire.snapshot().version, file=SINGLE, offset=offset)
        pieces = [len(response.data) for response in wire.snapshots.ReadFile(request, timeout=SECONDS)]
        assert sum(pieces) == size - offset
        assert max(pieces) <= 2**20


def test_a_fault_in_the_middle_of_a_stream(daemon: Daemon, wire: Wire) -> None:
    path = daemon.state / "snapshots" / "v1" / "README.md"
    path.unlink()
    path.mkdir()  # nothing that the daemon is prepared for
    with refused(StatusCode.INTERNAL, "log"):
        wire.read(1, "README.md")
    assert "IsADirectoryError" in daemon.log.read_text()
