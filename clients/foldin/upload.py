"""Handing in a checkpoint from this machine: hash, open, send what is missing, commit.

Invariants: at most `parallel` chunks are in memory; only what the daemon says it lacks is sent, however
often the connection or this process broke off; a file that changed on the way is never committed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from foldin.backoff import Patience
from foldin.checkpoint import CheckpointFile
from foldin.chunks import Chunk, send_chunks
from foldin.connection import WHOLE_CHECKPOINT, Connection, is_outage
from foldin.decoding import vocab_in_contract
from foldin.errors import CheckpointError, DataLoss, FailedPrecondition, FoldinError, NotFound
from foldin.hashing import Digest, digest_file, is_unchanged
from foldin.models import Progress
from foldin.tally import Tally
from foldin.v1 import submissions_pb2 as pb
from foldin.vocabulary import VocabPolicy

# What a daemon answers when what it holds of an upload is not what this side believes: it was restored, the upload
# expired, or bytes went bad. Opening the upload again tells what is missing.
_OUT_OF_STEP = (FailedPrecondition, NotFound, DataLoss)
MOST_REPAIRS = 1


@dataclass(frozen=True)
class Terms:
    """How a checkpoint is to be taken; the fields are those of CreateSubmissionRequest."""

    name: str = ""
    labels: Mapping[str, str] | None = None
    request_id: str = ""
    partial: bool = False
    force: bool = False
    vocab: VocabPolicy = VocabPolicy.SAME
    take_out: bool = False


def upload(
    connection: Connection,
    files: Sequence[CheckpointFile],
    terms: Terms,
    parallel: int,
    on_progress: Callable[[Progress], None],
) -> pb.Submission:
    """Send a checkpoint and return the submission it became, or the one that has the same content.

    Args:
      parallel: chunks in flight at a time.
      on_progress: told of `hashing` and `uploading`, in bytes.

    Raises:
      CheckpointError: a file cannot be read, or changed meanwhile.
      DataLoss: bytes arrived altered twice.
      FoldinError: the daemon does not take it.
    """
    connection.reach()
    digests = _hash(files, on_progress)
    specs = [pb.FileSpec(name=file.name, size=digests[file].size, sha256=digests[file].sha256) for file in files]
    request = pb.CreateSubmissionRequest(
        files=specs,
        name=terms.name,
        labels=dict(terms.labels or {}),
        request_id=terms.request_id,
        partial=terms.partial,
        force=terms.force,
        vocab=vocab_in_contract(terms.vocab),
        take_out=terms.take_out,
    )
    patience = connection.patience()
    repairs = 0
    while True:
        opened: pb.CreateSubmissionResponse = connection.call_patiently(
            connection.submissions.CreateSubmission, request, patience=patience
        )
        if opened.submission.state != pb.SUBMISSION_STATE_RECEIVING:
            return opened.submission
        try:
            _send(connection, opened, files, digests, parallel, patience, on_progress)
            _require_unchanged(files, digests)
            return _commit(connection, opened.submission.id, specs, patience)
        except _OUT_OF_STEP:
            if repairs == MOST_REPAIRS:
                raise
            repairs += 1
        except FoldinError as error:
            if not is_outage(error):
                raise
            patience.pause(error)


def _hash(files: Sequence[CheckpointFile], on_progress: Callable[[Progress], None]) -> dict[CheckpointFile, Digest]:
    digests = {}
    try:
        tally = Tally("hashing", sum(file.path.stat().st_size for file in files), on_progress)
        for file in files:
            digests[file] = digest_file(file.path, partial(tally.add, file.name))
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}.") from None
    _require_unchanged(files, digests)
    return digests


def _send(
    connection: Connection,
    opened: pb.CreateSubmissionResponse,
    files: Sequence[CheckpointFile],
    digests: Mapping[CheckpointFile, Digest],
    parallel: int,
    patience: Patience,
    on_progress: Callable[[Progress], None],
) -> None:
    total = sum(digest.size for digest in digests.values())
    missing = sum(span.end - span.start for file in opened.missing for span in file.ranges)
    tally = Tally("uploading", total, on_progress)
    tally.add(files[0].name, total - missing)
    send_chunks(
        connection,
        opened.submission.id,
        _chunks(opened, files),
        parallel,
        patience,
        on_sent=lambda chunk: tally.add(chunk.file.name, chunk.size),
    )


def _chunks(opened: pb.CreateSubmissionResponse, files: Sequence[CheckpointFile]) -> Iterator[Chunk]:
    by_name = {file.name: file for file in files}
    for missing in opened.missing:
        for span in missing.ranges:
            for offset in range(span.start, span.end, opened.chunk_size):
                yield Chunk(by_name[missing.file], offset, min(opened.chunk_size, span.end - offset))


def _require_unchanged(files: Sequence[CheckpointFile], digests: Mapping[CheckpointFile, Digest]) -> None:
    for file in files:
        if not is_unchanged(file.path, digests[file]):
            raise CheckpointError(
                f"{file.path} changed while it was being sent: wait until whatever writes it has finished, "
                "then submit it again."
            )


def _commit(
    connection: Connection, submission_id: str, specs: Sequence[pb.FileSpec], patience: Patience
) -> pb.Submission:
    # Repeated by id, not by opening the upload again: a commit whose answer was lost must not become a second
    # submission where the content is to be taken by force.
    response: pb.CommitSubmissionResponse = connection.call_patiently(
        connection.submissions.CommitSubmission,
        pb.CommitSubmissionRequest(submission_id=submission_id, files=specs),
        WHOLE_CHECKPOINT,
        patience,
    )
    return response.submission
