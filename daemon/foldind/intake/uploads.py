"""Uploads in chunks: any order, in parallel, repeatable, and resumable after either side was killed.

Beside each file lies a map of one byte a chunk. It is written after the chunk and flushed by nobody: should power fail
between the two, the digest at commit finds out, and that file is sent again.
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from prometheus_client import Counter

from foldind.errors import Busy, DigestMismatch, InvalidRequest, NotFound, OutOfRoom, WrongState
from foldind.intake.admission import Admission, check_digests, content_digest
from foldind.logs import about
from foldind.state.durable import (
    FileDigest,
    digest_file,
    is_disk_trouble,
    make_folder,
    open_for_writing,
    preallocate,
    sync,
    write_at,
)
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger, NewSubmission
from foldind.state.records import Submission, SubmissionState
from foldind.state.rows import sizes

log = logging.getLogger(__name__)

CHUNK_BYTES = 2 * 1024 * 1024
MAX_CHUNKS_IN_FLIGHT = 8
MAX_COMMITS_AT_ONCE = 2
"""Each reads a whole checkpoint; more of them make none faster."""
RECEIVED_SUFFIX = ".received"

Ranges = list[tuple[int, int]]


class _Upload:
    """One RECEIVING submission."""

    def __init__(self, path: Path, files: Mapping[str, FileDigest]):
        self.path = path
        self.files = files
        self.received: dict[str, bytearray] = {}
        self.closing = asyncio.Lock()
        self.writers = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def prepare(self) -> None:
        """Make the files that are missing, at their full length, and read which chunks are there."""
        make_folder(self.path)
        for name, digest in self.files.items():
            chunks = -(-digest.size // CHUNK_BYTES)
            path, map_path = self.path / name, self.path / (name + RECEIVED_SUFFIX)
            if path.is_file() and path.stat().st_size == digest.size and map_path.is_file():
                self.received[name] = bytearray(map_path.read_bytes().ljust(chunks, b"\0")[:chunks])
            else:
                self.clear(name)

    def clear(self, name: str) -> None:
        """Forget what arrived of a file."""
        map_path = self.path / (name + RECEIVED_SUFFIX)
        map_path.unlink(missing_ok=True)
        size = self.files[name].size
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            preallocate(descriptor, size)
        except OSError:
            os.ftruncate(descriptor, 0)
            raise
        finally:
            os.close(descriptor)
        self.received[name] = bytearray(-(-size // CHUNK_BYTES))
        map_path.write_bytes(self.received[name])

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write a chunk, then its mark; nothing, where there are no marks (any more)."""
        index = offset // CHUNK_BYTES
        with ExitStack() as closing:
            marks, file = (
                closing.enter_context(open_for_writing(path))
                for path in (self.path / (name + RECEIVED_SUFFIX), self.path / name)
            )
            write_at(file, data, offset)
            write_at(marks, b"\1", index)
        self.received[name][index] = 1

    def missing(self) -> dict[str, Ranges]:
        """Return the byte ranges that have not arrived, by file; files that are complete are left out."""
        found: dict[str, Ranges] = {}
        for name, received in self.received.items():
            size, ranges = self.files[name].size, found.setdefault(name, [])
            for index, there in enumerate(received):
                start = index * CHUNK_BYTES
                if there:
                    continue
                if ranges and ranges[-1][1] == start:
                    ranges[-1] = (ranges[-1][0], min(start + CHUNK_BYTES, size))
                else:
                    ranges.append((start, min(start + CHUNK_BYTES, size)))
        return {name: ranges for name, ranges in found.items() if ranges}


class Uploads:
    """The uploads that are going on; for one event loop."""

    def __init__(self, folder: StateFolder, ledger: Ledger, admission: Admission, received: Counter):
        self._folder = folder
        self._ledger = ledger
        self._admission = admission
        self._received = received
        self._uploads: dict[str, _Upload] = {}
        self._opening = asyncio.Lock()
        self._committing = asyncio.Semaphore(MAX_COMMITS_AT_ONCE)
        self._in_flight = 0

    async def create(self, new: NewSubmission) -> tuple[Submission, dict[str, Ranges]]:
        """Open an upload, or find the one to go on with.

        Returns:
          The submission, and the byte ranges of each file that are still to be sent.

        Raises:
          InvalidRequest, CheckpointRefused, Conflict, OutOfRoom: as the contract says.
        """
        announced, files = new.files.keys(), self._admission.wanted(new.files)
        new = replace(new, files=files, content_digest=content_digest(files))
        self._admission.check_announced(new)
        submission = await asyncio.to_thread(self._ledger.create, new)
        if submission.state is not SubmissionState.RECEIVING:
            return submission, {}
        if left_out := announced - files.keys():
            about(log, submission.id).info("%s is left out: the merge rule does not read it", *left_out)
        upload = await self._upload(submission.id)
        return submission, upload.missing()

    async def write_chunk(self, submission_id: str, name: str, offset: int, data: bytes) -> None:
        """Write one chunk.

        Raises:
          NotFound, InvalidRequest, WrongState, Busy, OutOfRoom: as the contract says.
        """
        upload = await self._upload(submission_id)
        if name not in upload.files:
            raise NotFound(
                f"submission {submission_id} has no file {name[:80]!r}", "send the files that were announced"
            )
        size = upload.files[name].size
        if offset % CHUNK_BYTES or offset >= size or len(data) != min(CHUNK_BYTES, size - offset):
            raise InvalidRequest(
                f"{len(data)} bytes at offset {offset} are no chunk of {name}, which has {size} bytes",
                f"chunks begin at multiples of {CHUNK_BYTES} and have that length, or what is left of the file",
            )
        if upload.closing.locked():
            raise WrongState(f"submission {submission_id} is being committed", "send no more chunks")
        if self._in_flight >= MAX_CHUNKS_IN_FLIGHT:
            raise Busy("too many chunks are in flight", "wait a little and send this one again")
        self._in_flight += 1
        upload.writers += 1
        upload.idle.clear()
        try:
            await asyncio.to_thread(upload.write, name, offset, data)
            self._received.inc(len(data))
        except FileNotFoundError as error:
            self._uploads.pop(submission_id, None)
            raise WrongState(f"submission {submission_id} was withdrawn", "submit it again") from error
        except OSError as error:
            if is_disk_trouble(error):
                raise OutOfRoom(f"the daemon's disk cannot take the chunk ({error})", "send it again later") from error
            raise
        finally:
            self._in_flight -= 1
            upload.writers -= 1
            if not upload.writers:
                upload.idle.set()

    async def commit(self, submission_id: str, files: Mapping[str, FileDigest]) -> Submission:
        """Close an upload: verify, make durable, check and queue.

        Raises:
          NotFound, InvalidRequest, WrongState, DigestMismatch: as the contract says.
        """
        submission = await asyncio.to_thread(self._ledger.representative, submission_id)
        if submission.state is not SubmissionState.RECEIVING:
            return submission
        upload = await self._upload(submission_id)
        files = self._admission.wanted(files)
        if sizes(files) != sizes(upload.files):
            raise InvalidRequest("the files are not those announced", "commit those, with the sizes announced")
        check_digests(files)
        async with upload.closing:
            await upload.idle.wait()
            submission = await asyncio.to_thread(self._ledger.get, submission_id)
            if submission.state is SubmissionState.RECEIVING:
                try:
                    async with self._committing:
                        submission = await asyncio.to_thread(self._close, submission_id, upload, files)
                except FileNotFoundError as error:
                    self._uploads.pop(submission_id, None)
                    raise WrongState(
                        f"what arrived of submission {submission_id} is gone from the daemon's disk", "submit it again"
                    ) from error
                self._uploads.pop(submission_id, None)
        return submission

    def _close(self, submission_id: str, upload: _Upload, files: Mapping[str, FileDigest]) -> Submission:
        if missing := upload.missing():
            name, ranges = next(iter(missing.items()))
            raise WrongState(
                f"{sum(end - start for start, end in ranges)} bytes of {name} have not arrived",
                "call CreateSubmission again to learn what is missing, and send it",
            )
        wrong = []
        for name, digest in files.items():
            sync(upload.path / name)
            if digest_file(upload.path / name) != digest:
                wrong.append(name)
                upload.clear(name)
        if wrong:
            raise DigestMismatch(
                f"what arrived of {', '.join(wrong)} differs from what was sent",
                "it was cleared; call CreateSubmission again and send it anew",
            )
        admitted = self._admission.admit(submission_id, files)
        for name in files:
            with suppress(OSError):  # goes with the folder at the latest
                (upload.path / (name + RECEIVED_SUFFIX)).unlink(missing_ok=True)
        return admitted

    async def _upload(self, submission_id: str) -> _Upload:
        if upload := self._uploads.get(submission_id):
            return upload
        async with self._opening:
            if upload := self._uploads.get(submission_id):
                return upload
            submission = await asyncio.to_thread(self._ledger.get, submission_id)
            if submission.state is not SubmissionState.RECEIVING:
                raise WrongState(f"submission {submission_id} is {submission.state}", "it takes no more bytes")
            if not submission.uploaded:
                raise WrongState(
                    f"submission {submission_id} is being copied from the daemon's own file system",
                    "it takes no bytes; wait until it is queued",
                )
            upload = _Upload(self._folder.submission(submission_id), submission.files)
            try:
                await asyncio.to_thread(self._make_files, upload)
            except OSError as error:
                if is_disk_trouble(error):
                    raise OutOfRoom(
                        f"the daemon's disk has no room for the submission ({error})",
                        "submit again once the operator has made room",
                    ) from error
                raise
            self._uploads[submission_id] = upload
            return upload

    def _make_files(self, upload: _Upload) -> None:
        if not upload.path.is_dir():
            self._admission.check_room(upload.files)
        upload.prepare()

    async def withdraw(self, submission_id: str, reason: str) -> Submission:
        """Take a submission back; its bytes are deleted by the next housekeeping. Raises NotFound, WrongState."""
        submission = await asyncio.to_thread(self._ledger.withdraw, submission_id, reason)
        self._uploads.pop(submission_id, None)
        about(log, submission_id).info("%s", reason)
        return submission
