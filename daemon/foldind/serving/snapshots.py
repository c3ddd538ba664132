"""SnapshotService."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict

from foldin.v1 import snapshots_pb2 as pb
from foldin.v1.snapshots_pb2_grpc import SnapshotServiceServicer

from foldind.changes import Changes
from foldind.errors import NotFound, OffsetOutOfRange
from foldind.metrics import Metrics
from foldind.republication import Republication
from foldind.service import MergeService
from foldind.serving.answers import Context, streaming, unary
from foldind.serving.conversion import fill_page, page, snapshot_message
from foldind.serving.references import alias, movable_alias, resolve
from foldind.state.folder import StateFolder
from foldind.state.records import VersionState
from foldind.state.versions import LATEST, Versions
from foldind.worker.messages import Progress

READ_BYTES = 1024 * 1024


class SnapshotServicer(SnapshotServiceServicer):
    """Reading merged models, and naming them."""

    def __init__(
        self,
        folder: StateFolder,
        versions: Versions,
        service: MergeService,
        republication: Republication,
        changes: Changes,
        metrics: Metrics,
    ):
        self._folder = folder
        self._versions = versions
        self._service = service
        self._republication = republication
        self._changes = changes
        self._sent = metrics.sent

    @unary
    async def Get(self, request: pb.GetSnapshotRequest, context: Context) -> pb.Snapshot:
        return snapshot_message(await asyncio.to_thread(resolve, self._versions, request.ref or LATEST))

    @unary
    async def List(self, request: pb.ListSnapshotsRequest, context: Context) -> pb.ListSnapshotsResponse:
        after, size = page(request.page_size, request.page_token)
        found = await asyncio.to_thread(self._versions.page, after, size + 1)
        snapshots, more = fill_page(map(snapshot_message, found), size)
        return pb.ListSnapshotsResponse(snapshots=snapshots, next_page_token=str(snapshots[-1].version) if more else "")

    @streaming
    async def Watch(self, request: pb.WatchSnapshotsRequest, context: Context) -> AsyncIterator[pb.Snapshot]:
        name, sent = alias(request.alias or LATEST), 0
        while True:
            seen = self._changes.count
            version = await asyncio.to_thread(self._versions.aliased, name)
            if version and version.version != sent:
                yield snapshot_message(version)
                sent = version.version
            await self._changes.wait(seen)

    @streaming
    async def ReadFile(self, request: pb.ReadFileRequest, context: Context) -> AsyncIterator[pb.ReadFileResponse]:
        version = await asyncio.to_thread(self._versions.get, request.version)
        name = f"v{version.version}"
        if version.state is VersionState.PRUNED:
            raise NotFound(f"the files of {name} are no longer kept", "see `foldin snapshots`")
        if request.file not in version.files:
            raise NotFound(f"{name} has no file {request.file[:80]!r}", f"see `foldin show {name}`")
        if request.offset > version.files[request.file].size:
            raise OffsetOutOfRange(
                f"{request.file} has {version.files[request.file].size} bytes", "read from within it"
            )
        try:
            file = await asyncio.to_thread((self._folder.snapshot(version.version) / request.file).open, "rb")
        except FileNotFoundError as error:  # pruned a moment ago
            raise NotFound(f"the files of {name} are no longer kept", "see `foldin snapshots`") from error
        with file:
            file.seek(request.offset)
            while data := await asyncio.to_thread(file.read, READ_BYTES):
                yield pb.ReadFileResponse(data=data)
                self._sent.inc(len(data))

    @unary
    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        name = movable_alias(request.alias)
        await asyncio.to_thread(self._versions.point, name, request.version)
        self._changes.announce()
        if not request.version:
            return pb.SetAliasResponse()
        return pb.SetAliasResponse(snapshot=snapshot_message(await asyncio.to_thread(resolve, self._versions, name)))

    @streaming
    async def Publish(self, request: pb.PublishRequest, context: Context) -> AsyncIterator[pb.PublishResponse]:
        name = request.alias and movable_alias(request.alias)
        told: asyncio.Queue[Progress | None] = asyncio.Queue()
        task = asyncio.ensure_future(self._republication.ask(request.publication, name, told.put_nowait))
        task.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while progress := await told.get():
                yield pb.PublishResponse(**asdict(progress))
            version = await task
        finally:
            task.cancel()  # if the caller has gone and it has not begun, it need not
        yield pb.PublishResponse(snapshot=snapshot_message(version))

    @unary
    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.RollbackResponse:
        undone, newest = await self._service.rollback(request.version)
        return pb.RollbackResponse(undone=undone.version, snapshot=snapshot_message(newest) if newest else None)
