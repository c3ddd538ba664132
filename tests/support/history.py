"""A state folder with a history, made once a session by a real daemon; tests work on copies of it."""

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.models import base_tensors, make_base
from tests.support.wire import SINGLE, Wire, fine_tuned, single

VERSIONS = 4
BEYOND = [2**63 - 1, 2**63, 2**64 - 1]
"""Versions that the contract can say; SQLite has no place for most of them."""


@dataclass(frozen=True)
class History:
    """Four merged submissions, one refused, one withdrawn, one whose bytes never arrived."""

    state: Path
    base: Path
    merged: tuple[str, ...]
    """Ids by version, v1 first."""
    rejected: str
    withdrawn: str
    receiving: str

    def copy(self, to: Path) -> Path:
        """Copy the state folder, links as links."""
        return shutil.copytree(self.state, to, symlinks=True)


@cache
def history(folder: Path) -> History:
    """Make it below a folder, unless that was done."""
    base = make_base(folder / "history" / "base")
    with Daemon(folder / "history" / "state", base) as daemon:
        with Wire(daemon) as wire:
            rejected = wire.upload({SINGLE: b"no tensors"}, name="rejected")
            withdrawn = wire.withdraw(wire.create({SINGLE: b"12345678"}, name="withdrawn").submission.id)
            merged = [
                wire.settled(wire.upload(single(fine_tuned(base_tensors())), name=f"task{number}").id).id
                for number in range(1, VERSIONS + 1)
            ]
            receiving = wire.create({SINGLE: b"87654321"}, name="receiving").submission.id
        assert daemon.terminate() == 0
    return History(daemon.state, base, tuple(merged), rejected.id, withdrawn.id, receiving)
