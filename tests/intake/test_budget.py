"""What is in flight is bounded, and a fault of the daemon's own is told as one."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from foldin.v1 import submissions_pb2 as pb
from grpc import StatusCode

from tests.support.daemon import Daemon, wait_for
from tests.support.wire import CHUNK, SECONDS, SINGLE, Wire, assert_is_sentence

IN_FLIGHT = 8


@pytest.fixture
def stuck(daemon: Daemon, wire: Wire) -> Callable[[str], Path]:
    """Put a pipe where the daemon writes an upload: a chunk for it stays in flight until somebody reads."""

    def replace(submission_id: str) -> Path:
        path = daemon.state / "submissions" / submission_id / SINGLE
        path.unlink()
        os.mkfifo(path)
        return path

    return replace


def test_too_many_chunks_in_flight(daemon: Daemon, wire: Wire, stuck: Callable[[str], Path]) -> None:
    content = b"\1" * (16 * CHUNK)
    submission_id = wire.create({SINGLE: content}, digests=False).submission.id
    pipe = stuck(submission_id)
    calls = []
    try:
        for offset in range(0, len(content), CHUNK):
            request = pb.WriteChunkRequest(
                submission_id=submission_id, file=SINGLE, offset=offset, data=content[offset : offset + CHUNK]
            )
            calls.append(wire.submissions.WriteChunk.future(request, timeout=SECONDS))
        wait_for(lambda: sum(call.done() for call in calls) == len(calls) - IN_FLIGHT, "all but eight to be refused")
        for call in calls:
            if call.done():
                assert call.code() is StatusCode.RESOURCE_EXHAUSTED
                assert_is_sentence(call.details())
                assert "again" in call.details()
    finally:
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        wait_for(lambda: all(call.done() for call in calls), "the chunks in flight to end")
        os.close(reader)
    # A pipe cannot be written at an offset: nothing that the daemon is prepared for.
    log = daemon.log.read_text()
    for call in calls:
        if call.code() is not StatusCode.RESOURCE_EXHAUSTED:
            assert call.code() is StatusCode.INTERNAL
            assert_is_sentence(call.details())
            assert "log" in call.details()
    assert "Traceback" in log

    # What was refused and what failed gave its place back.
    other = wire.create({SINGLE: b"\2" * (2 * IN_FLIGHT * CHUNK)}, digests=False).submission.id
    wire.send(other, {SINGLE: b"\2" * (2 * IN_FLIGHT * CHUNK)})
