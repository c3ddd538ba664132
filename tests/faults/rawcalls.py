"""The contract, call by call: an upload that stops where a test wants it to."""

from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from foldin import ResourceExhausted
from foldin.v1 import submissions_pb2 as pb
from foldin.v1.submissions_pb2_grpc import SubmissionServiceStub

from tests.faults.bases import CHUNK_BYTES


class Upload:
    """One model.safetensors on its way."""

    def __init__(self, server: str, path: Path):
        self.id = ""
        self._content = path.read_bytes()
        self._files = [pb.FileSpec(name=path.name, size=len(self._content), sha256=sha256(self._content).hexdigest())]
        self._channel = grpc.insecure_channel(server)
        self._stub = SubmissionServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def create(self) -> list[tuple[int, int]]:
        """Open it, or go on; return the byte ranges that are missing."""
        response = self._stub.CreateSubmission(pb.CreateSubmissionRequest(files=self._files))
        self.id = response.submission.id
        return [(span.start, span.end) for missing in response.missing for span in missing.ranges]

    def write(self, *chunks: int) -> None:
        """Send chunks by number."""
        for number in chunks:
            offset = number * CHUNK_BYTES
            data = self._content[offset : offset + CHUNK_BYTES]
            name = self._files[0].name
            self._stub.WriteChunk(pb.WriteChunkRequest(submission_id=self.id, file=name, offset=offset, data=data))

    def commit(self) -> None:
        """Close it.

        Raises:
          ResourceExhausted: the daemon has no room.
        """
        try:
            self._stub.CommitSubmission(pb.CommitSubmissionRequest(submission_id=self.id, files=self._files))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise ResourceExhausted(error.details() or "") from error
            raise
