"""A disk that is really full: clear errors, nothing lost, and on it goes when there is room."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from foldin import Client, ResourceExhausted, Submission

from tests.faults import evidence
from tests.faults.bases import CHUNK_BYTES
from tests.faults.disk import NotPermittedError, SmallDisk, small_disk
from tests.faults.processes import FaultDaemon
from tests.faults.rawcalls import Upload
from tests.faults.reference import Reference
from tests.support.daemon import wait_for

DISK_BYTES = 160 * 1024 * 1024
PAGE_BYTES = 4096
LEDGER_BYTES = 1024 * 1024
"""Enough for some transactions, and for no tensor file."""
UPLOAD_BYTES = 40 * 1024 * 1024
"""Enough for an upload, and not for the ledger afterwards."""
NOTHING = pytest.param(0, marks=pytest.mark.faults)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        with small_disk(tmp_path / "disk", DISK_BYTES) as mounted:
            yield mounted
    except NotPermittedError as error:
        pytest.skip(f"needs the right to mount a tmpfs: {error}")


@pytest.fixture
def daemon(
    disk: SmallDisk, reference: Reference, tmp_path: Path, fault_daemon: Callable[..., FaultDaemon]
) -> Iterator[FaultDaemon]:
    """A daemon on a small disk, with two submissions merged."""
    state = reference.two_merged.copy(disk.root)
    made = fault_daemon(state, log=tmp_path / "log", environment={"FOLDIN_RETRY_DISK_EVERY": "0.2"})
    yield made
    made.kill()  # before the disk goes


@pytest.fixture
def client(daemon: FaultDaemon) -> Iterator[Client]:
    with daemon.client() as client:
        yield client


def check_end(daemon: FaultDaemon, client: Client, submission_id: str, reference: Reference) -> None:
    submission = client.wait(submission_id)
    assert (submission.version, submission.attempts) == (3, 0)
    evidence.check_served(client, daemon.state)
    assert daemon.terminate() == 0
    evidence.check_files_are(daemon.state, reference.digests)
    evidence.check_with_fsck(daemon.state)


@pytest.mark.parametrize("leave", [NOTHING, UPLOAD_BYTES])
def test_full_before_an_upload(
    disk: SmallDisk, daemon: FaultDaemon, client: Client, reference: Reference, leave: int
) -> None:
    daemon.start()
    disk.fill(leave)
    with pytest.raises(ResourceExhausted, match=r"disk .*(later|made room)"):
        client.submit(reference.two_merged.checkpoints[0])
    evidence.check_served(client, daemon.state)
    disk.make_room()
    check_end(daemon, client, client.submit(reference.two_merged.checkpoints[0]).id, reference)


def test_full_in_the_middle_of_an_upload(
    disk: SmallDisk, daemon: FaultDaemon, client: Client, reference: Reference
) -> None:
    daemon.start()
    with Upload(daemon.server, reference.two_merged.checkpoints[0] / "model.safetensors") as upload:
        upload.create()
        upload.write(0)
        disk.fill()
        # Its room was taken when it was announced; what is full is the ledger's.
        upload.write(1, 2)
        with pytest.raises(ResourceExhausted, match=r"disk .*later"):
            upload.commit()
        assert client.status(upload.id).state == "RECEIVING"
        disk.make_room()
        assert upload.create() == []
        upload.commit()
    check_end(daemon, client, upload.id, reference)


@pytest.mark.parametrize("leave", [NOTHING, LEDGER_BYTES])
def test_full_before_a_merge(
    disk: SmallDisk, daemon: FaultDaemon, client: Client, reference: Reference, leave: int
) -> None:
    daemon.start()
    worker = daemon.wait_for_worker()
    worker.suspend()  # it is still importing: nothing is taken up before it is ready
    submission_id = client.submit(reference.two_merged.checkpoints[0]).id
    disk.fill(leave)
    worker.resume()
    check_paused(client, submission_id)
    evidence.check_served(client, daemon.state)
    disk.make_room()
    check_end(daemon, client, submission_id, reference)


@pytest.mark.parametrize("leave", [NOTHING, LEDGER_BYTES])
def test_full_during_a_merge(
    disk: SmallDisk, daemon: FaultDaemon, client: Client, reference: Reference, leave: int
) -> None:
    daemon.start_warm()
    worker = daemon.wait_for_worker()
    worker.suspend()
    submission_id = client.submit(reference.two_merged.checkpoints[0]).id
    daemon.wait_for_line(" into v")  # the old state is gone, the request is with the worker
    # The new accumulated state fits, and a part of the snapshot.
    size = (reference.two_merged.checkpoints[0] / "model.safetensors").stat().st_size
    disk.fill(2 * size - CHUNK_BYTES if leave else size + CHUNK_BYTES)
    worker.resume()
    check_paused(client, submission_id)
    disk.fill(leave)
    check_paused(client, submission_id)
    evidence.check_served(client, daemon.state)
    disk.make_room()
    check_end(daemon, client, submission_id, reference)


def test_full_during_a_merge_down_to_the_last_byte(
    disk: SmallDisk, daemon: FaultDaemon, client: Client, reference: Reference
) -> None:
    daemon.start_warm()
    worker = daemon.wait_for_worker()
    worker.suspend()
    submission_id = client.submit(reference.two_merged.checkpoints[0]).id
    daemon.wait_for_line(" into v")  # the old state is gone, the request is with the worker
    # The new accumulated state fits, and then not even a row of the ledger: it cannot go back to QUEUED.
    size = (daemon.state / "merge" / "v2" / "accumulated.safetensors").stat().st_size
    disk.fill(-(-size // PAGE_BYTES) * PAGE_BYTES)
    worker.resume()
    check_paused(client, submission_id, "MERGING")
    evidence.check_served(client, daemon.state)
    disk.make_room()
    check_end(daemon, client, submission_id, reference)


@pytest.mark.faults
def test_killed_while_the_disk_is_full(
    disk: SmallDisk, daemon: FaultDaemon, client: Client, reference: Reference
) -> None:
    daemon.start()
    worker = daemon.wait_for_worker()
    worker.suspend()
    submission_id = client.submit(reference.two_merged.checkpoints[0]).id
    disk.fill(LEDGER_BYTES)
    worker.resume()
    check_paused(client, submission_id)
    daemon.kill()
    evidence.check_with_fsck(daemon.state)
    daemon.start()
    evidence.answer_of(lambda: check_paused(client, submission_id))
    disk.make_room()
    check_end(daemon, client, submission_id, reference)


def check_paused(client: Client, submission_id: str, state: str = "QUEUED") -> None:
    """Check that the daemon waits for room, says so, and blames nobody."""

    def paused() -> Submission | None:
        submission = client.status(submission_id)
        return submission if submission.reason and submission.state == state else None  # it is tried now and then

    submission = wait_for(paused, "the reason for the pause")
    assert submission.reason.startswith("paused: "), submission
    assert "No space left on device" in submission.reason or "disk is full" in submission.reason
    assert "make room" in submission.reason
    assert submission.attempts == 0
