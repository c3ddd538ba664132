"""Faults while a checkpoint is copied from a folder that the daemon can read."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from foldin import Client, ResourceExhausted

from tests.faults import evidence
from tests.faults.processes import FaultDaemon
from tests.faults.reference import Reference
from tests.faults.striking import Fault, Side, Step
from tests.faults.struck import Struck

MakeDaemon = Callable[..., FaultDaemon]

CELLS = [
    pytest.param(step, side, id=f"{step}-{side}".replace(" ", "_"), marks=marks)
    for step, side, marks in (
        (Step.ROW_CREATED, Side.BEFORE, pytest.mark.faults),
        (Step.ROW_CREATED, Side.AFTER, pytest.mark.faults),
        (Step.FILE_COPIED, Side.BEFORE, pytest.mark.faults),
        (Step.FILE_COPIED, Side.AFTER, pytest.mark.faults),
        (Step.COPY_SEALED, Side.BEFORE, pytest.mark.faults),
        (Step.COPY_SEALED, Side.AFTER, ()),
        (Step.ENQUEUED, Side.BEFORE, pytest.mark.faults),
        (Step.ENQUEUED, Side.AFTER, pytest.mark.faults),
    )
]


@pytest.mark.parametrize(("step", "side"), CELLS)
def test_daemon_killed(reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon, step: Step, side: Side) -> None:
    struck = Struck(reference, tmp_path, fault_daemon, step, side, Fault.KILL)
    with Client(struck.daemon.server, patience=0) as client, pytest.raises(Exception, match="cannot reach"):
        client.submit_path(str(struck.checkpoint))
    assert struck.daemon.wait_for_end() == -signal.SIGKILL
    evidence.check_stopped(struck.state)
    struck.restart()
    evidence.check_no_leftovers(struck.state)
    with struck.daemon.client() as client:
        submission_id = evidence.answer_of(lambda: client.submit_path(str(struck.checkpoint))).id
        client.wait(submission_id)
    struck.check_end(submission_id, attempts=0)


@pytest.mark.faults
@pytest.mark.parametrize("fault", [Fault.FULL, Fault.FAILING])
@pytest.mark.parametrize(("step", "side"), CELLS)
def test_disk_in_trouble_once(
    reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon, step: Step, side: Side, fault: Fault
) -> None:
    struck = Struck(reference, tmp_path, fault_daemon, step, side, fault)
    with struck.daemon.client() as client:
        with pytest.raises(ResourceExhausted, match="disk"):
            client.submit_path(str(struck.checkpoint))
        submission_id = client.submit_path(str(struck.checkpoint), wait=True).id
    struck.check_end(submission_id, attempts=0)
