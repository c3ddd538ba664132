"""Taking a submission back, and queueing a quarantined one again, in every state."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grpc import StatusCode
from torch import Tensor

from tests.support.daemon import Daemon, wait_for
from tests.support.wire import CHUNK, SINGLE, Wire, assert_is_sentence, idle_worker, refused, single, state

Checkpoint = Callable[[], dict[str, Tensor]]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Daemon]:
    """One that gives a checkpoint a single attempt."""
    folder = tmp_path_factory.mktemp("withdraw")
    with Daemon(folder / "state", base, environment={"FOLDIN_MAX_ATTEMPTS": "1"}) as running:
        yield running


@pytest.fixture(scope="module")
def wire(daemon: Daemon) -> Iterator[Wire]:
    with Wire(daemon) as wire:
        yield wire


def merging(wire: Wire, submission_id: str) -> bool:
    return state(wire.get(submission_id)) == "MERGING"


def quarantined(daemon: Daemon, wire: Wire, checkpoint: Checkpoint) -> str:
    """Let the worker die over a submission, and another one take its place."""
    with idle_worker(daemon):
        submission = wire.upload(single(checkpoint()))
        # MERGING comes before the worker is asked; one that is dead by then is replaced without an attempt counted.
        wait_for(lambda: f"{submission.id}: folding " in daemon.log.read_text(), "the worker to be asked")
        worker = daemon.worker
        assert worker is not None
        worker.kill()
        told = wire.settled(submission.id)
    assert state(told) == "QUARANTINED"
    assert told.attempts == 1
    assert "SIGKILL" in told.reason
    assert_is_sentence(told.reason)
    assert state(wire.settled(wire.upload(single(checkpoint())).id)) == "MERGED"
    return submission.id


def assert_bytes_go(daemon: Daemon, submission_id: str) -> None:
    folder = daemon.state / "submissions" / submission_id
    wait_for(lambda: not folder.exists(), f"{folder} to go")


def test_receiving(daemon: Daemon, wire: Wire, checkpoint: Checkpoint) -> None:
    files = single(checkpoint(), wide=True)
    submission = wire.create(files).submission
    wire.write(submission.id, SINGLE, 0, files[SINGLE][:CHUNK])
    withdrawn = wire.withdraw(submission.id)
    assert (state(withdrawn), withdrawn.version) == ("WITHDRAWN", 0)
    assert "submitter" in withdrawn.reason
    with refused(StatusCode.FAILED_PRECONDITION, submission.id):
        wire.write(submission.id, SINGLE, CHUNK, files[SINGLE][CHUNK : 2 * CHUNK])
    assert state(wire.commit(submission.id, files)) == "WITHDRAWN"
    assert_bytes_go(daemon, submission.id)
    assert wire.create(files).submission.id != submission.id, "the content may be handed in anew"


def test_queued_and_merging(daemon: Daemon, wire: Wire, checkpoint: Checkpoint) -> None:
    with idle_worker(daemon):
        first, second, third = (wire.upload(single(checkpoint())) for _ in range(3))
        wait_for(lambda: merging(wire, first.id), "the first merge to start")
        with refused(StatusCode.FAILED_PRECONDITION, first.id, "MERGING"):
            wire.withdraw(first.id)
        assert state(wire.get(second.id)) == "QUEUED"
        assert state(wire.withdraw(second.id)) == "WITHDRAWN"
    assert state(wire.settled(first.id)) == "MERGED"
    assert wire.settled(third.id).version == wire.get(first.id).version + 1
    assert [event.state for event in wire.get(second.id).history] == [1, 2, 7]
    assert_bytes_go(daemon, second.id)


def test_merged(wire: Wire, checkpoint: Checkpoint) -> None:
    submission = wire.settled(wire.upload(single(checkpoint())).id)
    with refused(StatusCode.FAILED_PRECONDITION, submission.id, "MERGED", "rollback"):
        wire.withdraw(submission.id)


def test_rejected_and_withdrawn(wire: Wire) -> None:
    rejected = wire.upload({SINGLE: b"no tensors"})
    with refused(StatusCode.FAILED_PRECONDITION, rejected.id, "REJECTED"):
        wire.withdraw(rejected.id)
    withdrawn = wire.withdraw(wire.create({SINGLE: b"12345678"}, digests=False).submission.id)
    with refused(StatusCode.FAILED_PRECONDITION, withdrawn.id, "WITHDRAWN"):
        wire.withdraw(withdrawn.id)


def test_unknown(wire: Wire) -> None:
    for call in (wire.withdraw, wire.retry, wire.get, wire.watch):
        for name in ("", "nowhere", "x" * 10_000, "../ledger.sqlite"):
            with refused(StatusCode.NOT_FOUND):
                call(name)


def test_quarantined(daemon: Daemon, wire: Wire, checkpoint: Checkpoint) -> None:
    submission_id = quarantined(daemon, wire, checkpoint)
    assert (daemon.state / "submissions" / submission_id).is_dir(), "kept for a retry"
    assert state(wire.withdraw(submission_id)) == "WITHDRAWN"
    assert_bytes_go(daemon, submission_id)
    with refused(StatusCode.FAILED_PRECONDITION, submission_id):
        wire.retry(submission_id)


def test_retry(daemon: Daemon, wire: Wire, checkpoint: Checkpoint) -> None:
    submission_id = quarantined(daemon, wire, checkpoint)
    with idle_worker(daemon):
        ahead = wire.upload(single(checkpoint()))
        wait_for(lambda: merging(wire, ahead.id), "the next merge to start")
        behind = wire.upload(single(checkpoint()))
        retried = wire.retry(submission_id)
        assert (state(retried), retried.attempts, retried.reason) == ("QUEUED", 0, "")
        with refused(StatusCode.FAILED_PRECONDITION, submission_id, "QUEUED"):
            wire.retry(submission_id)
    assert state(wire.settled(submission_id)) == "MERGED"
    assert wire.get(submission_id).version < wire.settled(behind.id).version, "it kept its place"
    for other in (submission_id, wire.upload({SINGLE: b"no tensors"}).id):
        with refused(StatusCode.FAILED_PRECONDITION, other, "only a QUARANTINED"):
            wire.retry(other)
