"""Sending chunks of files in parallel with bounded memory.

The calls are made by threads of their own and block there: an interrupt of the main thread in the middle of gRPC's
bookkeeping for asynchronous calls leaves a channel that cannot be closed any more.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Lock, Thread

from foldin.backoff import Patience
from foldin.checkpoint import CheckpointFile
from foldin.connection import CHUNK, Connection
from foldin.errors import CheckpointError, ResourceExhausted
from foldin.v1 import submissions_pb2 as pb


@dataclass(frozen=True)
class Chunk:
    """A piece of a file; offset and size in bytes."""

    file: CheckpointFile
    offset: int
    size: int


def send_chunks(
    connection: Connection,
    submission_id: str,
    chunks: Iterator[Chunk],
    parallel: int,
    patience: Patience,
    on_sent: Callable[[Chunk], None],
) -> None:
    """Send every chunk, at most `parallel` at a time; each is read when its turn comes.

    A chunk that a daemon with too much in flight refuses is sent again after a while.

    Args:
      patience: reset by every chunk that arrives.
      on_sent: called, in the caller's thread, once per chunk that arrived.

    Raises:
      CheckpointError: a file cannot be read, or is shorter than it was.
      FoldinError: the daemon does not take a chunk; nothing is in flight any more.
    """
    stop = Event()
    lock = Lock()
    results: SimpleQueue[Chunk | Exception | None] = SimpleQueue()

    def send(chunk: Chunk) -> None:
        request = _request(submission_id, chunk)
        while not stop.is_set():
            try:
                connection.call(connection.submissions.WriteChunk, request, CHUNK)
            except ResourceExhausted as refusal:
                with lock:
                    rest = patience.delay(refusal)
                stop.wait(rest)
            else:
                with lock:
                    patience.reset()
                results.put(chunk)
                return

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                send(chunk)
        except Exception as error:  # raised again in the caller's thread
            results.put(error)
        finally:
            results.put(None)

    for _ in range(parallel):
        Thread(target=work, name="foldin-upload", daemon=True).start()
    failure = None
    working = parallel
    try:
        while working:
            match results.get():
                case None:
                    working -= 1
                case Exception() as error:
                    failure = failure or error
                    stop.set()
                case Chunk() as chunk:
                    on_sent(chunk)
    finally:
        stop.set()
    if failure:
        raise failure


def _request(submission_id: str, chunk: Chunk) -> pb.WriteChunkRequest:
    path = chunk.file.path
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, chunk.size, chunk.offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    if len(data) != chunk.size:
        raise CheckpointError(f"{path} became shorter while it was being sent: submit it again once it is whole.")
    return pb.WriteChunkRequest(submission_id=submission_id, file=chunk.file.name, offset=chunk.offset, data=data)
