"""What bombs cost: nothing that a checkpoint of the base could not cost as well."""

from pathlib import Path

import psutil

from tests.hostile.attacks import ATTACKS
from tests.hostile.checkpoints import Tensors
from tests.hostile.test_drops import sparse
from tests.hostile.test_uploads import told
from tests.support.dropping import Box
from tests.support.wire import INDEX, SINGLE, Wire

BOMBS = ("index bomb of lists", "index bomb of objects", "a million tiny tensors", "enormous metadata")
MAX_BYTES = 150 * 1024**2


def peak_resident_bytes(process: psutil.Process) -> int:
    """VmHWM."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def test_the_daemon_stays_small(box: Box, wire: Wire, tensors: Tensors) -> None:
    for name in BOMBS:
        told(wire, ATTACKS[name].build(tensors))
    for number in range(3):
        for name in (SINGLE, INDEX):
            place = box.path / f".bomb-{number}-{name}"
            place.mkdir()
            sparse(place / name)
            place.rename(box.path / place.name[1:])
    for number in range(3):
        for name in (SINGLE, INDEX):
            box.rejected(f"bomb-{number}-{name}")
    assert peak_resident_bytes(psutil.Process(box.daemon.pid)) <= MAX_BYTES
