"""Closing an upload: what is missing, what arrived altered, and closing it more than once."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from foldin.v1 import submissions_pb2 as pb
from grpc import StatusCode
from torch import Tensor

from tests.support.daemon import Daemon
from tests.support.wire import (
    CHUNK,
    INDEX,
    SECONDS,
    SINGLE,
    Wire,
    idle_worker,
    ranges,
    refused,
    sharded,
    single,
    specs,
    state,
)

Checkpoint = Callable[[], dict[str, Tensor]]


def test_unknown_submission(wire: Wire) -> None:
    with refused(StatusCode.NOT_FOUND, "nowhere"):
        wire.commit("nowhere", {SINGLE: b"1"})


def test_missing_bytes(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint(), wide=True)
    submission_id = wire.create(files).submission.id
    wire.write(submission_id, SINGLE, 0, files[SINGLE][:CHUNK])
    with refused(StatusCode.FAILED_PRECONDITION, SINGLE, str(len(files[SINGLE]) - CHUNK), "CreateSubmission"):
        wire.commit(submission_id, files)
    assert state(wire.get(submission_id)) == "RECEIVING"
    wire.send(submission_id, files)
    assert state(wire.commit(submission_id, files)) == "QUEUED"


def test_a_digest_that_differs_clears_that_file_only(wire: Wire, checkpoint: Checkpoint) -> None:
    files = sharded(checkpoint(), wide=True)
    submission_id = wire.create(files).submission.id
    wire.send(submission_id, files)
    damaged = max(files, key=lambda name: len(files[name]))
    whole = next(name for name in files if name not in (damaged, INDEX))
    wire.write(submission_id, damaged, CHUNK, b"\0" * CHUNK)
    with refused(StatusCode.DATA_LOSS, damaged, "CreateSubmission"):
        wire.commit(submission_id, files)
    again = wire.create(files)
    assert (again.submission.id, state(again.submission)) == (submission_id, "RECEIVING")
    assert ranges(again) == {damaged: [(0, len(files[damaged]))]}
    assert whole not in ranges(again)
    wire.send(submission_id, {damaged: files[damaged]})
    assert state(wire.commit(submission_id, files)) == "QUEUED"


def test_other_files_than_announced(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint())
    submission_id = wire.create(files).submission.id
    wire.send(submission_id, files)
    for other in (
        {},
        {"other.safetensors": files[SINGLE]},
        {SINGLE: files[SINGLE][:-1]},
        {**files, "more.safetensors": b"1"},
    ):
        with refused(StatusCode.INVALID_ARGUMENT, "announced"):
            wire.commit(submission_id, other)
    assert not wire.create(files).missing


@pytest.mark.parametrize("digest", ["", "abc", "A" * 64])
def test_digests_are_required_and_well_formed(wire: Wire, checkpoint: Checkpoint, digest: str) -> None:
    files = single(checkpoint())
    submission_id = wire.create(files).submission.id
    wire.send(submission_id, files)
    spec = pb.FileSpec(name=SINGLE, size=len(files[SINGLE]), sha256=digest)
    with refused(StatusCode.INVALID_ARGUMENT, "sha256"):
        request = pb.CommitSubmissionRequest(submission_id=submission_id, files=[spec])
        wire.submissions.CommitSubmission(request, timeout=SECONDS)
    assert not wire.create(files).missing, "what arrived was cleared for what can be no digest"


def test_twice(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint())
    first = wire.upload(files)
    assert wire.commit(first.id, files).id == first.id
    wire.settled(first.id)
    again = wire.commit(first.id, files)
    assert (again.id, state(again)) == (first.id, "MERGED")
    assert [event.state for event in wire.get(first.id).history] == [1, 2, 3, 4]


def test_a_rejected_one_twice(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint() | {"extra.weight": next(iter(checkpoint().values()))})
    first = wire.upload(files)
    again = wire.commit(first.id, files)
    assert state(first) == state(again) == "REJECTED"
    assert first.reason == again.reason != ""


def test_at_the_same_time(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint(), wide=True)
    submission_id = wire.create(files).submission.id
    wire.send(submission_id, files)
    request = pb.CommitSubmissionRequest(submission_id=submission_id, files=specs(files))
    calls = [wire.submissions.CommitSubmission.future(request, timeout=SECONDS) for _ in range(8)]
    answers = [call.result().submission for call in calls]
    assert {answer.id for answer in answers} == {submission_id}
    assert {state(answer) for answer in answers} <= {"QUEUED", "MERGING", "MERGED"}
    wire.settled(submission_id)
    assert [event.state for event in wire.get(submission_id).history] == [1, 2, 3, 4]


def test_chunks_that_race_with_the_commit_change_nothing(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint(), wide=True)
    submission_id = wire.create(files).submission.id
    wire.send(submission_id, files)

    def write(_: int) -> str:
        try:
            wire.write(submission_id, SINGLE, 0, files[SINGLE][:CHUNK])
        except grpc.RpcError as error:
            return error.code().name
        return "OK"

    with ThreadPoolExecutor(8) as pool:
        writes = pool.map(write, range(16))
        committed = pool.submit(wire.commit, submission_id, files).result()
        assert set(writes) <= {"OK", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
    assert state(committed) == "QUEUED"
    assert state(wire.settled(submission_id)) == "MERGED"


def test_a_commit_whose_caller_has_gone_lets_nothing_in_meanwhile(
    wire: Wire, daemon: Daemon, checkpoint: Checkpoint, seed: int
) -> None:
    """What was verified is what is merged: no chunk is written between the two."""
    moments = random.Random(seed)
    with idle_worker(daemon):
        for _ in range(5):
            files = single(checkpoint(), wide=True)
            submission_id = wire.create(files).submission.id
            wire.send(submission_id, files)
            request = pb.CommitSubmissionRequest(submission_id=submission_id, files=specs(files))
            call = wire.submissions.CommitSubmission.future(request, timeout=SECONDS)
            time.sleep(moments.uniform(0, 0.02))
            call.cancel()
            for _ in range(5):
                with suppress(grpc.RpcError):
                    wire.write(submission_id, SINGLE, 0, b"\0" * CHUNK)
            with suppress(grpc.RpcError):  # of one that was written to before it was closed
                wire.commit(submission_id, files)
            if state(wire.get(submission_id)) in {"QUEUED", "MERGING"}:
                assert (daemon.state / "submissions" / submission_id / SINGLE).read_bytes() == files[SINGLE]
            else:
                wire.withdraw(submission_id)
