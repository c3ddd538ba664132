"""An uninterrupted run: what every interrupted one must come to, byte for byte."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.faults.bases import three_chunks, write_base
from tests.faults.evidence import Digests, tensor_digests
from tests.faults.processes import FaultDaemon
from tests.support.daemon import foldind, wait_for
from tests.support.models import make_checkpoint

SUBMISSIONS = 8


@dataclass(frozen=True)
class Prepared:
    """A state folder to be copied, and checkpoints to submit to it."""

    state: Path
    checkpoints: list[Path]

    def copy(self, folder: Path) -> Path:
        """Return a state folder of one's own."""
        return Path(shutil.copytree(self.state, folder / "state", symlinks=True))


@dataclass(frozen=True)
class Reference:
    """A base, submissions in an order, and what they gave when nothing went wrong."""

    base: Path
    checkpoints: list[Path]
    digests: Digests
    new: Prepared
    """Nothing is merged yet."""
    two_merged: Prepared
    """The first two submissions are merged."""


def make_reference(folder: Path) -> Reference:
    """Make the base and the submissions, and merge them without interruption."""
    base = write_base(folder / "base", three_chunks())
    checkpoints = [make_checkpoint(folder / f"task-{n}", base, seed=n) for n in range(1, SUBMISSIONS + 1)]
    new, two_merged, state = folder / "new", folder / "two_merged", folder / "state"
    foldind("init", "--backend", "numpy", "--base", str(base), "--state", str(new))
    with (new / "foldin.toml").open("a") as settings:
        settings.write('publish = ["model", "adapter"]\n')
    shutil.copytree(new, state)
    for part, copy in ((checkpoints[:2], two_merged), (checkpoints[2:], None)):
        daemon = FaultDaemon(state).start()
        try:
            with daemon.client() as client:
                for checkpoint in part:
                    client.submit(checkpoint, name=checkpoint.name, wait=True)
            wait_for(lambda: not any((state / "submissions").iterdir()), "what is merged to be removed")
            daemon.wait_for_bases()
            assert daemon.terminate() == 0
        finally:
            daemon.kill()
        if copy:
            shutil.copytree(state, copy, symlinks=True)
    digests = tensor_digests(state)
    assert len(digests) == SUBMISSIONS
    shutil.rmtree(state)
    return Reference(base, checkpoints, digests, Prepared(new, checkpoints), Prepared(two_merged, checkpoints[2:]))
