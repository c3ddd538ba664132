"""Faults at every step of a drop: it is folded once, and filed once."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import evidence
from tests.faults.processes import FaultDaemon
from tests.faults.reference import Reference
from tests.faults.striking import Fault, Side, Step
from tests.faults.struck import Struck
from tests.support.daemon import wait_for

MakeDaemon = Callable[..., FaultDaemon]

STEPS = (
    Step.FILE_COPIED,
    Step.ROW_CREATED,
    Step.COPY_SEALED,
    Step.ENQUEUED,
    Step.VERSION_COMMITTED,
    Step.RECEIPT_WRITTEN,
    Step.DROP_MOVED,
)
IN_THE_SHORT_RUN = ((Step.ENQUEUED, Side.BEFORE), (Step.RECEIPT_WRITTEN, Side.AFTER))
CELLS = [
    pytest.param(
        step,
        side,
        id=f"{step}-{side}".replace(" ", "_"),
        marks=() if (step, side) in IN_THE_SHORT_RUN else pytest.mark.faults,
    )
    for step in STEPS
    for side in Side
]


def drop(struck: Struck, inbox: Path) -> None:
    wait_for((inbox / "rejected").is_dir, "the inbox to be made")
    shutil.copytree(struck.checkpoint, inbox / ".coming")
    (inbox / ".coming").rename(inbox / struck.checkpoint.name)


def check_filed(struck: Struck, inbox: Path) -> str:
    """Wait until the drop is filed, check that all is there once, and return the id of its submission."""
    name = struck.checkpoint.name
    wait_for(lambda: (inbox / "accepted" / name).exists() and not (inbox / name).exists(), "the drop to be filed")
    assert {path.name for path in inbox.iterdir()} == {"accepted", "rejected"}
    assert {path.name for path in (inbox / "accepted").iterdir()} == {name, f"{name}.json"}
    assert not list((inbox / "rejected").iterdir())
    receipt = json.loads((inbox / "accepted" / f"{name}.json").read_bytes())
    assert (receipt["state"], receipt["version"], receipt["note"]) == ("MERGED", 3, "")
    return str(receipt["submission"])


@pytest.mark.parametrize(("step", "side"), CELLS)
def test_daemon_killed(reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon, step: Step, side: Side) -> None:
    inbox = tmp_path / "inbox"
    struck = Struck(reference, tmp_path, fault_daemon, step, side, Fault.KILL, inbox)
    drop(struck, inbox)
    assert struck.daemon.wait_for_end() == -signal.SIGKILL
    evidence.check_stopped(struck.state)
    struck.restart()
    struck.check_end(check_filed(struck, inbox), attempts=0)


@pytest.mark.faults
@pytest.mark.parametrize("fault", [Fault.FULL, Fault.FAILING])
@pytest.mark.parametrize(("step", "side"), CELLS)
def test_disk_in_trouble_once(
    reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon, step: Step, side: Side, fault: Fault
) -> None:
    inbox = tmp_path / "inbox"
    struck = Struck(reference, tmp_path, fault_daemon, step, side, fault, inbox)
    drop(struck, inbox)
    struck.check_end(check_filed(struck, inbox))
