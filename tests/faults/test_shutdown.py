"""SIGTERM at any moment: exit status 0, nothing lost, no attempt counted."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import grpc
import pytest
from foldin import Client, Progress, ServerUnavailable, Submission
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.faults import evidence, striking
from tests.faults.bases import CHUNKS_OF_LARGE
from tests.faults.processes import FaultDaemon
from tests.faults.reference import Prepared, Reference
from tests.faults.striking import Fault, Side, Step
from tests.support.daemon import wait_for

MakeDaemon = Callable[..., FaultDaemon]
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
QUICKLY_SECONDS = 8
SOME_CHUNKS = 3


@contextmanager
def health_of(daemon: FaultDaemon) -> Iterator[health_pb2_grpc.HealthStub]:
    with grpc.insecure_channel(daemon.server) as channel:
        yield health_pb2_grpc.HealthStub(channel)


def test_while_idle(reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon) -> None:
    daemon = fault_daemon(reference.two_merged.copy(tmp_path)).start_warm()
    worker = daemon.wait_for_worker()
    assert daemon.terminate(QUICKLY_SECONDS) == 0
    assert not worker.is_running()
    evidence.check_stopped(daemon.state)
    evidence.check_no_leftovers(daemon.state)


@pytest.mark.faults
def test_while_the_worker_starts(reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon) -> None:
    daemon = fault_daemon(reference.two_merged.copy(tmp_path)).start()
    worker = daemon.wait_for_worker()
    assert daemon.terminate(QUICKLY_SECONDS) == 0
    assert not worker.is_running()


def test_during_a_merge_that_has_the_time(slow: Prepared, tmp_path: Path, fault_daemon: MakeDaemon) -> None:
    daemon = fault_daemon(slow.copy(tmp_path)).start_warm()
    with daemon.client() as client, health_of(daemon) as health:
        probes = health.Watch(health_pb2.HealthCheckRequest())
        assert next(probes).status == SERVING
        submission_id = _merging(client, slow.checkpoints[0])
        daemon.send(signal.SIGTERM)
        assert next(probes).status == NOT_SERVING
        # While it drains, it answers questions and takes nothing new.
        for name in ("", "foldin.v1.SubmissionService", "foldin.v1.SnapshotService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == NOT_SERVING
        assert client.status(submission_id).state == "MERGING"
        with Client(daemon.server, patience=0) as impatient, pytest.raises(ServerUnavailable, match="shutting down"):
            impatient.submit(slow.checkpoints[1])
        assert client.wait(submission_id).version == 2  # watchers still see it
    assert daemon.wait_for_end() == 0
    evidence.check_stopped(daemon.state)
    assert evidence.read_ledger(daemon.state).latest == 2
    evidence.check_latest(daemon.state)


def test_during_a_merge_that_has_no_time(slow: Prepared, tmp_path: Path, fault_daemon: MakeDaemon) -> None:
    daemon = fault_daemon(slow.copy(tmp_path), "--shutdown-grace", "0").start_warm()
    with daemon.client() as client:
        submission_id = _merging(client, slow.checkpoints[0])
    assert daemon.terminate(QUICKLY_SECONDS) == 0
    evidence.check_stopped(daemon.state)
    submission = evidence.read_ledger(daemon.state).submissions[-1]
    assert (submission.id, submission.state, submission.attempts) == (submission_id, "QUEUED", 0)
    daemon.start()
    evidence.check_no_leftovers(daemon.state)
    with daemon.client() as client:
        merged = evidence.answer_of(lambda: client.wait(submission_id))
    assert (merged.version, merged.attempts) == (2, 0)


def test_just_when_a_merge_is_taken_up(slow: Prepared, tmp_path: Path, fault_daemon: MakeDaemon) -> None:
    """The worker that was stopped is not started again to fold what there is no time for."""
    daemon = fault_daemon(
        slow.copy(tmp_path),
        "--shutdown-grace",
        "0",
        command=striking.command(Step.SNAPSHOT_FOLDER_MADE, Side.AFTER, Fault.TERMINATE, tmp_path / "struck"),
    ).start_warm()
    with daemon.client() as client:
        client.submit(slow.checkpoints[0])
    assert daemon.wait_for_end() == 0
    assert daemon.text.count(" is ready, ") == 1, daemon.text
    submission = evidence.read_ledger(daemon.state).submissions[-1]
    assert (submission.state, submission.attempts) == ("QUEUED", 0)
    evidence.check_stopped(daemon.state)


@pytest.mark.long
def test_twice_changes_nothing(slow: Prepared, tmp_path: Path, fault_daemon: MakeDaemon) -> None:
    daemon = fault_daemon(slow.copy(tmp_path)).start_warm()
    with daemon.client() as client:
        _merging(client, slow.checkpoints[0])
        daemon.send(signal.SIGTERM)
        daemon.wait_for_line(" stopping")
        daemon.send(signal.SIGTERM)
        daemon.send(signal.SIGINT)
    assert daemon.wait_for_end() == 0
    assert evidence.read_ledger(daemon.state).latest == 2
    evidence.check_stopped(daemon.state)


def test_during_an_upload(large: Prepared, tmp_path: Path, fault_daemon: MakeDaemon) -> None:
    daemon = fault_daemon(large.copy(tmp_path)).start_warm()
    upload = _Uploading(daemon.server, large.checkpoints[0])
    upload.start()
    assert upload.some_sent.wait(60)
    assert daemon.terminate() == 0
    evidence.check_stopped(daemon.state)
    assert SOME_CHUNKS <= evidence.chunks_received(daemon.state) < CHUNKS_OF_LARGE
    daemon.start()
    upload.join(60)
    assert upload.submission, upload.failure
    chunks_sent = len(upload.progress) - 2  # it tells how much is there each time the upload is opened
    assert chunks_sent in (CHUNKS_OF_LARGE, CHUNKS_OF_LARGE - 1), "what had arrived was sent again"
    with daemon.client() as client:
        assert evidence.answer_of(lambda: client.wait(upload.submission.id)).version == 1


class _Uploading(Thread):
    """A client that sends one chunk at a time."""

    def __init__(self, server: str, checkpoint: Path):
        super().__init__(daemon=True)
        self.submission: Submission | None = None
        self.failure: Exception | None = None
        self.progress: list[Progress] = []
        self.some_sent = Event()
        self._server = server
        self._checkpoint = checkpoint

    def run(self) -> None:
        try:
            with Client(self._server, patience=120, parallel=1) as client:
                self.submission = client.submit(self._checkpoint, on_progress=self._note)
        except Exception as error:
            self.failure = error

    def _note(self, progress: Progress) -> None:
        if progress.stage == "uploading":
            self.progress.append(progress)
            if len(self.progress) > SOME_CHUNKS:
                self.some_sent.set()


def _merging(client: Client, checkpoint: Path) -> str:
    """Submit, wait until the first tensor is folded, and return the id."""
    submission_id = client.submit(checkpoint).id
    wait_for(lambda: client.status(submission_id).progress, "the merge to be under way")
    return submission_id
