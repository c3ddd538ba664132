"""The same content, or the same request, is one submission."""

from collections.abc import Callable

from grpc import StatusCode
from torch import Tensor

from tests.support.wire import CHUNK, SINGLE, Wire, refused, sharded, single, state

Checkpoint = Callable[[], dict[str, Tensor]]


def test_content_being_received_is_gone_on_with(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint())
    first, second = wire.create(files, name="one"), wire.create(files, name="two")
    assert second.submission.id == first.submission.id
    assert second.submission.name == "one"


def test_content_that_is_queued_or_merged_is_found_at_once(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint())
    first = wire.upload(files)
    again = wire.create(files)
    assert (again.submission.id, list(again.missing)) == (first.id, [])
    wire.settled(first.id)
    again = wire.create(files)
    assert (again.submission.id, state(again.submission), list(again.missing)) == (first.id, "MERGED", [])


def test_content_without_digests_is_found_at_commit(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint())
    first, second = (wire.create(files, digests=False).submission.id for _ in range(2))
    assert first != second
    for submission_id in (first, second):
        wire.send(submission_id, files)
    assert wire.commit(first, files).id == first
    assert wire.commit(second, files).id == first
    withdrawn = wire.get(second)
    assert state(withdrawn) == "WITHDRAWN"
    assert first in withdrawn.reason


def test_a_repeated_commit_of_known_content_finds_the_earlier_one_again(wire: Wire, checkpoint: Checkpoint) -> None:
    # The answer to a commit may be lost on the way; the client then repeats the call.
    files = single(checkpoint())
    first = wire.upload(files)
    second = wire.create(files, digests=False).submission.id
    wire.send(second, files)
    assert wire.commit(second, files).id == first.id
    assert wire.commit(second, files).id == first.id


def test_the_names_of_the_files_are_part_of_the_content(wire: Wire, checkpoint: Checkpoint) -> None:
    tensors = checkpoint()
    assert wire.create(single(tensors)).submission.id != wire.create(sharded(tensors)).submission.id


def test_forced_content_is_a_submission_of_its_own(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint())
    first = wire.upload(files)
    forced = wire.upload(files, force=True)
    assert forced.id != first.id
    assert forced.content_digest == first.content_digest
    versions = [wire.settled(submission.id).version for submission in (first, forced)]
    assert versions[0] < versions[1]


def test_refused_content_may_come_again(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint() | {"extra.weight": next(iter(checkpoint().values()))})
    assert state(first := wire.upload(files)) == "REJECTED"
    assert wire.create(files).submission.id != first.id


def test_a_request_id_means_one_submission(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint())
    first = wire.upload(files, request_id="nightly-1")
    again = wire.create(files, request_id="nightly-1")
    assert (again.submission.id, list(again.missing)) == (first.id, [])
    assert wire.create(files, request_id="nightly-1", force=True).submission.id == first.id
    assert wire.create(files, digests=False, request_id="nightly-1").submission.id == first.id


def test_a_request_id_with_files_of_other_sizes_or_names(wire: Wire) -> None:
    submission = wire.create({SINGLE: b"1" * 100}, digests=False, request_id="sizes").submission
    for other in ({SINGLE: b"1" * 101}, {"model.safetensors.index.json": b"1" * 100, "a.safetensors": b"1"}):
        with refused(StatusCode.ALREADY_EXISTS, "sizes", submission.id, "another request id"):
            wire.create(other, digests=False, request_id="sizes")


def test_a_request_id_with_other_content_of_the_same_size(wire: Wire, checkpoint: Checkpoint) -> None:
    # All checkpoints of one base have one size: taking the second for the first would lose it silently.
    first = wire.upload(single(checkpoint()), request_id="daily")
    with refused(StatusCode.ALREADY_EXISTS, "daily", first.id):
        wire.create(single(checkpoint()), request_id="daily")


def test_a_request_id_with_other_content_while_the_first_is_received(wire: Wire, checkpoint: Checkpoint) -> None:
    files, other = single(checkpoint(), wide=True), single(checkpoint(), wide=True)
    opened = wire.create(files, request_id="mixed")
    wire.write(opened.submission.id, SINGLE, 0, files[SINGLE][:CHUNK])
    with refused(StatusCode.ALREADY_EXISTS, "mixed", opened.submission.id):
        wire.create(other, request_id="mixed")


def test_a_request_id_that_found_known_content(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint())
    known = wire.upload(files)
    assert wire.create(files, request_id="joined").submission.id == known.id
    with refused(StatusCode.ALREADY_EXISTS, "joined", known.id):
        wire.create(single(checkpoint()), request_id="joined")
