"""The contract as a client in any language speaks it: raw messages over raw stubs."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import psutil
import pytest
import torch
from foldin.v1 import snapshots_pb2, submissions_pb2
from foldin.v1.snapshots_pb2_grpc import SnapshotServiceStub
from foldin.v1.submissions_pb2_grpc import SubmissionServiceStub
from safetensors.torch import save
from torch import Tensor

from tests.support.daemon import Daemon, wait_for

CHUNK = 2 * 1024 * 1024
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SECONDS = 60

Files = Mapping[str, bytes]

_HEAD = {"classifier.weight": torch.full((2 * CHUNK + 1000,), 46, dtype=torch.uint8)}
"""A task head, which the daemon is told to ignore."""

_seeds = count(1)


class Wire:
    """One channel to a daemon; a context manager."""

    def __init__(self, daemon: Daemon):
        self.daemon = daemon
        self.channel = grpc.insecure_channel(daemon.server, options=[("grpc.enable_http_proxy", 0)])
        self.submissions: Any = SubmissionServiceStub(self.channel)
        self.snapshots: Any = SnapshotServiceStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()

    def create(self, files: Files, *, digests: bool = True, **terms: Any) -> submissions_pb2.CreateSubmissionResponse:
        request = submissions_pb2.CreateSubmissionRequest(files=specs(files, digests=digests), **terms)
        return self.submissions.CreateSubmission(request, timeout=SECONDS)

    def write(self, submission_id: str, name: str, offset: int, data: bytes) -> submissions_pb2.WriteChunkResponse:
        request = submissions_pb2.WriteChunkRequest(submission_id=submission_id, file=name, offset=offset, data=data)
        return self.submissions.WriteChunk(request, timeout=SECONDS)

    def send(self, submission_id: str, files: Files) -> None:
        for name, content in files.items():
            for offset in range(0, len(content), CHUNK):
                self.write(submission_id, name, offset, content[offset : offset + CHUNK])

    def commit(self, submission_id: str, files: Files) -> submissions_pb2.Submission:
        request = submissions_pb2.CommitSubmissionRequest(submission_id=submission_id, files=specs(files))
        return self.submissions.CommitSubmission(request, timeout=SECONDS).submission

    def upload(self, files: Files, **terms: Any) -> submissions_pb2.Submission:
        """Create, send everything, commit."""
        submission_id = self.create(files, **terms).submission.id
        self.send(submission_id, files)
        return self.commit(submission_id, files)

    def submit_path(self, path: Path | str, **terms: Any) -> submissions_pb2.Submission:
        request = submissions_pb2.SubmitPathRequest(path=str(path), **terms)
        return self.submissions.SubmitPath(request, timeout=SECONDS).submission

    def get(self, submission_id: str) -> submissions_pb2.Submission:
        return self.submissions.Get(submissions_pb2.GetSubmissionRequest(id=submission_id), timeout=SECONDS)

    def withdraw(self, submission_id: str) -> submissions_pb2.Submission:
        return self.submissions.Withdraw(submissions_pb2.WithdrawSubmissionRequest(id=submission_id), timeout=SECONDS)

    def retry(self, submission_id: str) -> submissions_pb2.Submission:
        return self.submissions.Retry(submissions_pb2.RetrySubmissionRequest(id=submission_id), timeout=SECONDS)

    def watch(self, submission_id: str) -> list[submissions_pb2.Submission]:
        """Follow a submission to the end of the stream."""
        request = submissions_pb2.WatchSubmissionRequest(id=submission_id)
        return list(self.submissions.Watch(request, timeout=SECONDS))

    def settled(self, submission_id: str) -> submissions_pb2.Submission:
        """The final state of a submission, waited for."""
        return self.watch(submission_id)[-1]

    def snapshot(self, ref: str = "") -> snapshots_pb2.Snapshot:
        return self.snapshots.Get(snapshots_pb2.GetSnapshotRequest(ref=ref), timeout=SECONDS)

    def read(self, version: int, name: str, offset: int = 0) -> bytes:
        request = snapshots_pb2.ReadFileRequest(version=version, file=name, offset=offset)
        return b"".join(response.data for response in self.snapshots.ReadFile(request, timeout=SECONDS))

    def point(self, alias: str, version: int) -> snapshots_pb2.SetAliasResponse:
        return self.snapshots.SetAlias(snapshots_pb2.SetAliasRequest(alias=alias, version=version), timeout=SECONDS)

    def rollback(self, version: int = 0) -> snapshots_pb2.RollbackResponse:
        return self.snapshots.Rollback(snapshots_pb2.RollbackRequest(version=version), timeout=SECONDS)


def specs(files: Files, *, digests: bool = True) -> list[submissions_pb2.FileSpec]:
    """What a submitter says of its files."""
    return [
        submissions_pb2.FileSpec(name=name, size=len(content), sha256=sha256(content).hexdigest() if digests else "")
        for name, content in files.items()
    ]


def state(submission: submissions_pb2.Submission) -> str:
    """A submission's state, without the prefix."""
    return submissions_pb2.SubmissionState.Name(submission.state).removeprefix("SUBMISSION_STATE_")


def ranges(response: submissions_pb2.CreateSubmissionResponse) -> dict[str, list[tuple[int, int]]]:
    """What is missing, by file."""
    return {missing.file: [(span.start, span.end) for span in missing.ranges] for missing in response.missing}


def assert_is_sentence(text: str) -> None:
    """An error for a person: something was said, and it is no traceback and no name of a Python class."""
    assert len(text) > 10, text
    for leak in ("Traceback", 'File "', ".py", "Error:", "Exception", "foldind."):
        assert leak not in text, text


@contextmanager
def refused(code: grpc.StatusCode, *words: str) -> Iterator[None]:
    """Expect a call to fail with this code and a sentence that has these words."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    sentence = caught.value.details()
    assert caught.value.code() is code, f"{caught.value.code()}: {sentence}"
    assert_is_sentence(sentence)
    for word in words:
        assert word in sentence


def fine_tuned(base: Mapping[str, Tensor], scale: float = 0.01) -> dict[str, Tensor]:
    """Tensors of a checkpoint of the base; no two calls give the same."""
    generator = torch.Generator().manual_seed(next(_seeds))
    return {
        name: tensor + (scale * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }


def single(tensors: Mapping[str, Tensor], *, wide: bool = False) -> dict[str, bytes]:
    """A checkpoint of one file; a wide one takes three chunks."""
    return {SINGLE: save({**tensors, **(_HEAD if wide else {})}, metadata={"format": "pt"})}


def sharded(tensors: Mapping[str, Tensor], shards: int = 2, *, wide: bool = False) -> dict[str, bytes]:
    """A checkpoint of an index and several shards; of a wide one the first takes three chunks."""
    names = list(tensors)
    files, weight_map = {}, {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]} | (_HEAD if wide and number == 0 else {})
        files[file] = save(part, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    return {INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode(), **files}


def write_files(folder: Path, files: Files) -> Path:
    """Put files into a folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@contextmanager
def idle_worker(daemon: Daemon) -> Iterator[None]:
    """Stop the worker's clock: whatever is submitted meanwhile gets no further than MERGING."""
    worker = wait_for(lambda: daemon.worker, "the worker to start")
    wait_for(lambda: f"worker {worker.pid} is ready" in daemon.log.read_text(), "the worker to be ready")
    daemon.wait_for_bases()
    worker.suspend()
    try:
        yield
    finally:
        if worker.is_running():
            worker.resume()


def end(daemon: Daemon) -> None:
    """Kill a daemon and its worker; a worker that is still importing would take seconds to notice by itself."""
    with suppress(AssertionError, psutil.NoSuchProcess):  # it ended before
        worker = daemon.worker
        os.kill(daemon.pid, signal.SIGKILL)
        if worker is not None:
            worker.kill()
    daemon.kill()


class Daemons:
    """Daemons that live no longer than a test; call it as `Daemon` to start one."""

    def __init__(self) -> None:
        self._started: list[Daemon] = []

    def __call__(self, *arguments: Any, **settings: Any) -> Daemon:
        self._started.append(daemon := Daemon(*arguments, **settings))
        return daemon.start()

    def end(self) -> None:
        for daemon in self._started:
            end(daemon)
