"""A stand-in for the daemon, over real gRPC: it keeps uploads in memory and fails when a test says so.

It merges nothing. It exists for the faults that a real daemon does not produce on demand.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Condition, Lock

import grpc
from foldin.v1 import snapshots_pb2, snapshots_pb2_grpc, submissions_pb2, submissions_pb2_grpc

CHUNK_SIZE = 64 * 1024
Fault = Callable[[grpc.ServicerContext], None]


class Upload:
    def __init__(self, submission: submissions_pb2.Submission) -> None:
        self.submission = submission
        self.sizes = {file.name: file.size for file in submission.files}
        self.chunks: dict[tuple[str, int], bytes] = {}

    def missing(self) -> list[submissions_pb2.MissingChunks]:
        found = []
        for name, size in self.sizes.items():
            ranges = [
                submissions_pb2.ByteRange(start=offset, end=min(offset + CHUNK_SIZE, size))
                for offset in range(0, size, CHUNK_SIZE)
                if (name, offset) not in self.chunks
            ]
            if ranges:
                found.append(submissions_pb2.MissingChunks(file=name, ranges=ranges))
        return found

    def sha256(self, name: str) -> str:
        pieces = [data for (file, _), data in sorted(self.chunks.items()) if file == name]
        return hashlib.sha256(b"".join(pieces)).hexdigest()


class Submissions(submissions_pb2_grpc.SubmissionServiceServicer):
    def __init__(self) -> None:
        self.uploads: dict[str, Upload] = {}
        self.calls: Counter[str] = Counter()
        self.written: list[tuple[str, int]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.faults: dict[str, list[Fault | None]] = {}
        self.after_commit = submissions_pb2.SUBMISSION_STATE_QUEUED
        self.reason = ""
        self.watched: list[submissions_pb2.Submission | Fault] = []
        self._ids = count(1)
        self._lock = Lock()

    def _strike(self, call: str, context: grpc.ServicerContext) -> None:
        with self._lock:
            self.calls[call] += 1
            waiting = self.faults.get(call)
            fault = waiting.pop(0) if waiting else None
        if fault:
            fault(context)

    def CreateSubmission(self, request, context):
        self._strike("CreateSubmission", context)
        with self._lock:
            upload = next(
                (one for one in self.uploads.values() if list(one.submission.files) == list(request.files)), None
            )
            if upload is None:
                upload = Upload(
                    submissions_pb2.Submission(
                        id=f"s{next(self._ids)}",
                        name=request.name,
                        labels=request.labels,
                        files=request.files,
                        partial=request.partial,
                        state=submissions_pb2.SUBMISSION_STATE_RECEIVING,
                    )
                )
                self.uploads[upload.submission.id] = upload
            receiving = upload.submission.state == submissions_pb2.SUBMISSION_STATE_RECEIVING
            return submissions_pb2.CreateSubmissionResponse(
                submission=upload.submission, missing=upload.missing() if receiving else [], chunk_size=CHUNK_SIZE
            )

    def WriteChunk(self, request, context):
        with self._lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            self._strike("WriteChunk", context)
            with self._lock:
                self.uploads[request.submission_id].chunks[request.file, request.offset] = request.data
                self.written.append((request.file, request.offset))
        finally:
            with self._lock:
                self.in_flight -= 1
        return submissions_pb2.WriteChunkResponse()

    def CommitSubmission(self, request, context):
        self._strike("CommitSubmission", context)
        upload = self.uploads[request.submission_id]
        if upload.missing():
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "bytes are missing: open the upload again.")
        for file in request.files:
            if upload.sha256(file.name) != file.sha256:
                upload.chunks = {key: data for key, data in upload.chunks.items() if key[0] != file.name}
                context.abort(grpc.StatusCode.DATA_LOSS, f"{file.name} arrived altered: send it again.")
        upload.submission.state = self.after_commit
        upload.submission.reason = self.reason
        return submissions_pb2.CommitSubmissionResponse(submission=upload.submission)

    def Get(self, request, context):
        self._strike("Get", context)
        if request.id not in self.uploads:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no submission {request.id}: see `foldin list`.")
        submission = submissions_pb2.Submission()
        submission.CopyFrom(self.uploads[request.id].submission)
        submission.history.add(state=submissions_pb2.SUBMISSION_STATE_RECEIVING, detail="opened").at.FromSeconds(1)
        return submission

    def List(self, request, context):
        self._strike("List", context)
        matching = [
            upload.submission
            for upload in self.uploads.values()
            if not request.states or upload.submission.state in request.states
        ]
        start = int(request.page_token or 0)
        return submissions_pb2.ListSubmissionsResponse(
            submissions=matching[start : start + 2], next_page_token=str(start + 2) if start + 2 < len(matching) else ""
        )

    def Watch(self, request, context) -> Iterator[submissions_pb2.Submission]:
        self._strike("Watch", context)
        events = self.watched  # a test may set the next stream's before this one is closed
        while events:
            event = events.pop(0)
            if callable(event):
                event(context)
            else:
                yield event


class Snapshots(snapshots_pb2_grpc.SnapshotServiceServicer):
    def __init__(self) -> None:
        self.contents: dict[int, dict[str, bytes]] = {}
        self.snapshots: dict[int, snapshots_pb2.Snapshot] = {}
        self.reads: list[tuple[str, int]] = []
        self.on_read: Callable[[str, int, bytes], Iterator[bytes]] | None = None
        self.after_watched: list[Callable[[], object]] = []
        self.changed = Condition()

    def publish(self, version: int, files: dict[str, bytes]) -> snapshots_pb2.Snapshot:
        snapshot = snapshots_pb2.Snapshot(
            version=version,
            parent=version - 1,
            aliases=["latest"],
            submission_id=f"s{version}",
            submission_name=f"task-{version}",
            submissions=version,
            rule="opcm",
            state=snapshots_pb2.SNAPSHOT_STATE_PUBLISHED,
            files=[
                snapshots_pb2.SnapshotFile(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
                for name, data in files.items()
            ],
            **{"lambda": 1.5},
        )
        snapshot.created_at.FromSeconds(1_700_000_000)
        with self.changed:
            for older in self.snapshots.values():
                del older.aliases[:]
            self.contents[version] = files
            self.snapshots[version] = snapshot
            self.changed.notify_all()
        return snapshot

    def Get(self, request, context):
        ref = request.ref or "latest"
        for version, snapshot in self.snapshots.items():
            if ref in {*snapshot.aliases, f"v{version}", str(version)}:
                return snapshot
        return context.abort(grpc.StatusCode.NOT_FOUND, f"there is no snapshot {ref}: see `foldin snapshots`.")

    def List(self, request, context):
        return snapshots_pb2.ListSnapshotsResponse(snapshots=[self.snapshots[key] for key in sorted(self.snapshots)])

    def ReadFile(self, request, context):
        self.reads.append((request.file, request.offset))
        data = self.contents[request.version][request.file][request.offset :]
        pieces = self.on_read(request.file, request.offset, data) if self.on_read else iter([data])
        for piece in pieces:
            if not piece:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the daemon is shutting down.")
            yield snapshots_pb2.ReadFileResponse(data=piece)

    def Watch(self, request, context):
        seen = 0
        while context.is_active():
            with self.changed:
                self.changed.wait_for(lambda last=seen: max(self.snapshots, default=0) > last, timeout=0.05)
                newest = max(self.snapshots, default=0)
            if newest > seen:
                seen = newest
                yield self.snapshots[newest]
                if self.after_watched:
                    self.after_watched.pop(0)()

    def SetAlias(self, request, context):
        if not request.version:
            return snapshots_pb2.SetAliasResponse()
        return snapshots_pb2.SetAliasResponse(snapshot=self.snapshots[request.version])

    def Rollback(self, request, context):
        newest = sorted(
            version
            for version, snapshot in self.snapshots.items()
            if snapshot.state == snapshots_pb2.SNAPSHOT_STATE_PUBLISHED
        )
        if not newest:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nothing was merged yet: there is nothing to undo.")
        undone = newest.pop()
        self.snapshots[undone].state = snapshots_pb2.SNAPSHOT_STATE_WITHDRAWN
        del self.snapshots[undone].aliases[:]
        left = self.snapshots[newest[-1]] if newest else None
        return snapshots_pb2.RollbackResponse(undone=undone, snapshot=left)


class StandIn:
    """Both services on one port; what they hold survives stop and start."""

    def __init__(self) -> None:
        self.submissions = Submissions()
        self.snapshots = Snapshots()
        self.port = 0
        self._server: grpc.Server | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(8))
        submissions_pb2_grpc.add_SubmissionServiceServicer_to_server(self.submissions, self._server)
        snapshots_pb2_grpc.add_SnapshotServiceServicer_to_server(self.snapshots, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        assert self.port
        self._server.start()

    def stop(self) -> None:
        if self._server:
            self._server.stop(grace=0).wait()
        self._server = None


def answering(code: grpc.StatusCode, sentence: str) -> Fault:
    return lambda context: context.abort(code, sentence)
