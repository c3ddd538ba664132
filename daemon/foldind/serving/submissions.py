"""SubmissionService."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable

from foldin.v1 import submissions_pb2 as pb
from foldin.v1.submissions_pb2_grpc import SubmissionServiceServicer

from foldind.changes import Changes
from foldind.errors import ShuttingDown
from foldind.intake.admission import check_request_id
from foldind.intake.local import LocalPaths
from foldind.intake.uploads import CHUNK_BYTES, Uploads
from foldind.logs import about
from foldind.service import MergeService
from foldind.serving.answers import Context, streaming, unary
from foldind.serving.conversion import (
    file_digests,
    fill_page,
    page,
    submission_message,
    submission_states,
    vocab_policy,
)
from foldind.state.ledger import Ledger, NewSubmission
from foldind.state.records import Event, Submission

log = logging.getLogger(__name__)


class SubmissionServicer(SubmissionServiceServicer):
    """Handing in checkpoints, and asking what became of them."""

    def __init__(self, ledger: Ledger, uploads: Uploads, paths: LocalPaths, service: MergeService, changes: Changes):
        self._ledger = ledger
        self._uploads = uploads
        self._paths = paths
        self._service = service
        self._changes = changes
        self.draining = False
        """Whether new submissions are turned away; what is under way may finish."""

    @unary
    async def CreateSubmission(
        self, request: pb.CreateSubmissionRequest, context: Context
    ) -> pb.CreateSubmissionResponse:
        self._check_open()
        check_request_id(request.request_id)
        submission, missing = await self._uploads.create(
            NewSubmission(
                files=file_digests(request.files),
                name=request.name,
                labels=dict(request.labels),
                request_id=request.request_id,
                partial=request.partial,
                vocab=vocab_policy(request.vocab),
                forced=request.force,
                takes_out=request.take_out,
            )
        )
        return pb.CreateSubmissionResponse(
            submission=self._message(submission),
            missing=[
                pb.MissingChunks(file=name, ranges=[pb.ByteRange(start=start, end=end) for start, end in ranges])
                for name, ranges in missing.items()
            ],
            chunk_size=CHUNK_BYTES,
        )

    @unary
    async def WriteChunk(self, request: pb.WriteChunkRequest, context: Context) -> pb.WriteChunkResponse:
        await self._uploads.write_chunk(request.submission_id, request.file, request.offset, request.data)
        return pb.WriteChunkResponse()

    @unary
    async def CommitSubmission(
        self, request: pb.CommitSubmissionRequest, context: Context
    ) -> pb.CommitSubmissionResponse:
        submission = await self._uploads.commit(request.submission_id, file_digests(request.files))
        self._changes.announce()
        return pb.CommitSubmissionResponse(submission=self._message(submission))

    @unary
    async def SubmitPath(self, request: pb.SubmitPathRequest, context: Context) -> pb.SubmitPathResponse:
        self._check_open()
        check_request_id(request.request_id)
        submission = await self._paths.submit(
            request.path,
            NewSubmission(
                files={},
                name=request.name,
                labels=dict(request.labels),
                request_id=request.request_id,
                partial=request.partial,
                vocab=vocab_policy(request.vocab),
                forced=request.force,
            ),
        )
        self._changes.announce()
        return pb.SubmitPathResponse(submission=self._message(submission))

    @unary
    async def Get(self, request: pb.GetSubmissionRequest, context: Context) -> pb.Submission:
        submission = await asyncio.to_thread(self._ledger.get, request.id)
        history = await asyncio.to_thread(self._ledger.history, request.id)
        return self._message(submission, history)

    @unary
    async def List(self, request: pb.ListSubmissionsRequest, context: Context) -> pb.ListSubmissionsResponse:
        after, size = page(request.page_size, request.page_token)
        found = await asyncio.to_thread(self._ledger.page, after, size + 1, submission_states(request.states))
        submissions, more = fill_page(map(self._message, found), size)
        return pb.ListSubmissionsResponse(
            submissions=submissions, next_page_token=str(found[len(submissions) - 1].number) if more else ""
        )

    @streaming
    async def Watch(self, request: pb.WatchSubmissionRequest, context: Context) -> AsyncIterator[pb.Submission]:
        sent = None
        while True:
            seen = self._changes.count
            submission = await asyncio.to_thread(self._ledger.get, request.id)
            message = self._message(submission)
            if message != sent:
                yield message
                sent = message
            if submission.state.settled:
                return
            await self._changes.wait(seen)

    @unary
    async def Retry(self, request: pb.RetrySubmissionRequest, context: Context) -> pb.Submission:
        submission = await asyncio.to_thread(self._ledger.retry, request.id)
        about(log, submission.id).info("queued again, retried")
        self._changes.announce()
        return self._message(submission)

    @unary
    async def Withdraw(self, request: pb.WithdrawSubmissionRequest, context: Context) -> pb.Submission:
        submission = await self._uploads.withdraw(request.id, "withdrawn by its submitter")
        self._changes.announce()
        return self._message(submission)

    def _message(self, submission: Submission, history: Iterable[Event] = ()) -> pb.Submission:
        return submission_message(
            submission,
            history=history,
            progress=self._service.progress.get(submission.id),
            paused_reason=self._service.pause.reason,
        )

    def _check_open(self) -> None:
        if self.draining:
            raise ShuttingDown("the daemon is shutting down", "submit again when it is back")
