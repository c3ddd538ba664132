"""Uploads in chunks: the grid, any order, repeats, resumption."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from grpc import StatusCode
from torch import Tensor

from tests.support.daemon import Daemon
from tests.support.wire import CHUNK, INDEX, SINGLE, Wire, end, ranges, refused, sharded, single, state

Checkpoint = Callable[[], dict[str, Tensor]]


def test_the_way_of_an_upload(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint(), wide=True)
    opened = wire.create(files, name="task")
    wire.send(opened.submission.id, files)
    committed = wire.commit(opened.submission.id, files)
    assert (committed.id, state(committed), committed.reason) == (opened.submission.id, "QUEUED", "")
    merged = wire.settled(committed.id)
    assert state(merged) == "MERGED"
    assert merged.version > 0
    assert [event.state for event in wire.get(committed.id).history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, CHUNK - 1),
        (0, CHUNK + 1),
        (0, 0),
        (1, CHUNK),
        (CHUNK - 1, 1),
        (CHUNK, 2 * CHUNK - 1000),
        (2 * CHUNK, CHUNK),
        (2 * CHUNK, 99),
        (2 * CHUNK, 101),
        (3 * CHUNK, 1),
        (2 * CHUNK + 100, 0),
        (2**63, 1),
        (2**64 - CHUNK, CHUNK),
    ],
)
def test_chunks_off_the_grid(wire: Wire, offset: int, length: int) -> None:
    submission = wire.create({SINGLE: b"\0" * (2 * CHUNK + 100)}, digests=False).submission
    with refused(StatusCode.INVALID_ARGUMENT, str(offset), str(CHUNK)):
        wire.write(submission.id, SINGLE, offset, b"\0" * length)


def test_an_empty_file_takes_no_chunk(wire: Wire) -> None:
    opened = wire.create({SINGLE: b""}, digests=False)
    assert not opened.missing
    with refused(StatusCode.INVALID_ARGUMENT):
        wire.write(opened.submission.id, SINGLE, 0, b"")


def test_unknown_submission_and_unknown_file(wire: Wire) -> None:
    with refused(StatusCode.NOT_FOUND, "nowhere"):
        wire.write("nowhere", SINGLE, 0, b"1")
    submission = wire.create({SINGLE: b"12345678"}, digests=False).submission
    for name in ("other.safetensors", "../ledger.sqlite", "", SINGLE + ".received"):
        with refused(StatusCode.NOT_FOUND, submission.id):
            wire.write(submission.id, name, 0, b"12345678")


def test_chunks_in_any_order_and_in_parallel(wire: Wire, checkpoint: Checkpoint, seed: int) -> None:
    files = sharded(checkpoint(), shards=3, wide=True)
    submission_id = wire.create(files).submission.id
    chunks = [
        (name, offset, content[offset : offset + CHUNK])
        for name, content in files.items()
        for offset in range(0, len(content), CHUNK)
    ]
    random.Random(seed).shuffle(chunks)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda chunk: wire.write(submission_id, *chunk), chunks * 2))
    assert not wire.create(files).missing
    assert state(wire.commit(submission_id, files)) == "QUEUED"


def test_a_repeated_chunk_replaces_the_first(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint(), wide=True)
    submission_id = wire.create(files).submission.id
    wire.write(submission_id, SINGLE, CHUNK, b"\xff" * CHUNK)
    wire.send(submission_id, files)
    wire.write(submission_id, SINGLE, 0, files[SINGLE][:CHUNK])
    assert state(wire.commit(submission_id, files)) == "QUEUED"


def test_resuming_tells_what_is_missing(wire: Wire) -> None:
    files = {INDEX: b"x" * 10, "a.safetensors": b"a" * (5 * CHUNK + 7), "b.safetensors": b"b" * CHUNK}
    opened = wire.create(files, digests=False, request_id="resumed")
    for name, index in (("a.safetensors", 1), ("a.safetensors", 4), (INDEX, 0)):
        wire.write(opened.submission.id, name, index * CHUNK, files[name][index * CHUNK : (index + 1) * CHUNK])
    again = wire.create(files, digests=False, request_id="resumed")
    assert again.submission.id == opened.submission.id
    assert ranges(again) == {
        "a.safetensors": [(0, CHUNK), (2 * CHUNK, 4 * CHUNK), (5 * CHUNK, 5 * CHUNK + 7)],
        "b.safetensors": [(0, CHUNK)],
    }


def test_an_upload_goes_on_after_the_daemon_was_killed(
    start_daemon: Callable[..., Daemon], tmp_path: Path, base: Path, checkpoint: Checkpoint
) -> None:
    daemon = start_daemon(tmp_path / "state", base, "--ignore", "classifier.*")
    files = single(checkpoint(), wide=True)
    with Wire(daemon) as wire:
        submission_id = wire.create(files).submission.id
        wire.write(submission_id, SINGLE, CHUNK, files[SINGLE][CHUNK : 2 * CHUNK])
    end(daemon)
    with Wire(daemon.start()) as wire:
        assert state(wire.get(submission_id)) == "RECEIVING"
        again = wire.create(files)
        assert again.submission.id == submission_id
        assert ranges(again) == {SINGLE: [(0, CHUNK), (2 * CHUNK, len(files[SINGLE]))]}
        for offset in (0, 2 * CHUNK):
            wire.write(submission_id, SINGLE, offset, files[SINGLE][offset : offset + CHUNK])
        assert state(wire.commit(submission_id, files)) == "QUEUED"


def test_no_chunk_after_the_commit(wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint(), wide=True)
    submission = wire.upload(files)
    with refused(StatusCode.FAILED_PRECONDITION, submission.id):
        wire.write(submission.id, SINGLE, 0, files[SINGLE][:CHUNK])
