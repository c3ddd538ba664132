"""Every fault at every step: a submission is merged all the same, once, to the same bytes."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from foldin import Client, FailedPrecondition, ResourceExhausted

from tests.faults import evidence
from tests.faults.kills import Submitter
from tests.faults.processes import FaultDaemon
from tests.faults.reference import Reference
from tests.faults.striking import IN_LEDGER, IN_WORKER, Fault, Side, Step
from tests.faults.struck import Struck

MakeDaemon = Callable[..., FaultDaemon]

OF_A_BASIS = (Step.BASIS_SEALED, Step.BASIS_WRITTEN)
NOT_OF_THE_DISK = (Step.WORKER_ANSWERED, Step.FOLDING, Step.PUBLISHING, *OF_A_BASIS)
ONLY_BEFORE = (Step.OLD_STATE_HALF_REMOVED, Step.BYTES_HALF_REMOVED, Step.PRUNE_HALF_REMOVED)
DURING_INTAKE = tuple(Step)[: list(Step).index(Step.TAKEN)]
OF_A_PATH = (Step.FILE_COPIED, Step.COPY_SEALED)
OF_A_DROP = (Step.RECEIPT_WRITTEN, Step.DROP_MOVED)
SENT_AGAIN_BY_THE_CLIENT = (Step.CHUNK_WRITTEN, Step.CHUNK_MARKED)

IN_EVERY_RUN = {
    (Step.ENQUEUED, Side.AFTER, Fault.KILL),
    (Step.SNAPSHOT_SEALED, Side.AFTER, Fault.KILL),
    (Step.VERSION_COMMITTED, Side.AFTER, Fault.KILL),
    (Step.BASIS_SEALED, Side.BEFORE, Fault.KILL),
    (Step.BASIS_WRITTEN, Side.AFTER, Fault.KILL),
    (Step.STATE_SEALED, Side.BEFORE, Fault.FULL),
    (Step.LATEST_POINTED, Side.BEFORE, Fault.DESCRIPTORS),
}


def cells(*faults: Fault, daemon: bool) -> list[object]:
    """Every step x side x fault that makes sense; all but a few only run in `make test-faults`."""
    return [
        pytest.param(
            *cell,
            id="-".join(cell).replace(" ", "_"),
            marks=() if cell in IN_EVERY_RUN else pytest.mark.faults,
        )
        for step in Step
        for fault in faults
        for side in Side
        if (cell := (step, side, fault))
        and (step in IN_WORKER) != daemon
        and step not in (*OF_A_PATH, *OF_A_DROP)
        and not (side is Side.AFTER and (step in ONLY_BEFORE or fault is Fault.FULL))
        and not (fault is not Fault.KILL and step in NOT_OF_THE_DISK)
        and not (fault is Fault.DESCRIPTORS and (step in DURING_INTAKE or step in IN_LEDGER))
    ]


@pytest.mark.parametrize(("step", "side", "fault"), cells(Fault.KILL, daemon=True))
def test_daemon_killed(
    reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon, step: Step, side: Side, fault: Fault
) -> None:
    struck = Struck(reference, tmp_path, fault_daemon, step, side, fault)
    submitter = Submitter(struck.daemon.server, [struck.checkpoint], parallel=1)
    submitter.start()
    try:
        assert struck.daemon.wait_for_end() == -signal.SIGKILL, struck.daemon.text
        evidence.check_stopped(struck.state)
        struck.restart()
        evidence.check_no_leftovers(struck.state)
        evidence.check_latest(struck.state)
        submitter.join(60)
        submitter.check()
    finally:
        submitter.end()
    struck.check_end(submitter.acknowledged[0], attempts=0)


@pytest.mark.parametrize(("step", "side", "fault"), cells(Fault.KILL, daemon=False))
def test_worker_killed(
    reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon, step: Step, side: Side, fault: Fault
) -> None:
    struck = Struck(reference, tmp_path, fault_daemon, step, side, fault)
    with struck.daemon.client() as client:
        submission = client.submit(struck.checkpoint, wait=True)
    struck.check_end(submission.id, attempts=0 if step in OF_A_BASIS else 1)


@pytest.mark.parametrize(
    ("step", "side", "fault"),
    [*cells(Fault.FULL, Fault.FAILING, daemon=True), *cells(Fault.FULL, Fault.FAILING, daemon=False)],
)
def test_disk_in_trouble_once(
    reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon, step: Step, side: Side, fault: Fault
) -> None:
    struck = Struck(reference, tmp_path, fault_daemon, step, side, fault)
    with struck.daemon.client() as client:
        submission_id = _submit(client, struck.checkpoint, step)
        client.wait(submission_id)
    if step not in DURING_INTAKE:
        struck.daemon.wait_for_line("paused: ")
        struck.daemon.wait_for_line("going on")
    struck.check_end(submission_id, attempts=0)


@pytest.mark.parametrize(("step", "side", "fault"), cells(Fault.DESCRIPTORS, daemon=True))
def test_unexpected_error_once(
    reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon, step: Step, side: Side, fault: Fault
) -> None:
    struck = Struck(reference, tmp_path, fault_daemon, step, side, fault)
    with struck.daemon.client() as client:
        submission_id = client.submit(struck.checkpoint).id
        client.wait(submission_id)
    struck.check_end(submission_id)


def _submit(client: Client, checkpoint: Path, step: Step) -> str:
    if step in DURING_INTAKE and step not in SENT_AGAIN_BY_THE_CLIENT:
        with pytest.raises(ResourceExhausted, match="disk"):
            client.submit(checkpoint)
    return client.submit(checkpoint).id


def test_rollback_does_not_trust_a_state_that_was_half_removed(
    reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon
) -> None:
    struck = Struck(reference, tmp_path, fault_daemon, Step.OLD_STATE_HALF_REMOVED, Side.BEFORE, Fault.KILL)
    with struck.daemon.client() as client:
        client.submit(struck.checkpoint)
    assert struck.daemon.wait_for_end() == -signal.SIGKILL
    struck.restart()
    with struck.daemon.client() as client, pytest.raises(FailedPrecondition, match="no longer kept"):
        evidence.answer_of(client.rollback)
