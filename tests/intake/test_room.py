"""Submissions leave room for what will free room again: a merge."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from foldind.checkpoints.plan import Plan
from foldind.config import MergeSettings, ServeSettings
from foldind.errors import OutOfRoom
from foldind.intake.admission import RESERVED_BYTES, Admission
from foldind.state.database import Database
from foldind.state.durable import FileDigest
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger

from tests.support.daemon import foldind
from tests.support.models import load_model

SUBMISSION_BYTES = 1000


def test_room_for_a_merge_is_left(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foldind("init", "--backend", "numpy", "--base", str(base), "--state", str(tmp_path / "state"))
    folder = StateFolder(tmp_path / "state")
    tensors = load_model(base).values()
    state = sum(4 * tensor.numel() for tensor in tensors if tensor.is_floating_point())
    merge_bytes = state + sum(tensor.nbytes for tensor in tensors)  # the new state, and a snapshot
    with Database(tmp_path / "ledger.sqlite", create=True) as database:
        plan = Plan.from_json(folder.plan.read_bytes())
        admission = Admission(folder, Ledger(database), plan, MergeSettings(), ServeSettings())

        def with_free(free: int) -> None:
            monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
            admission.check_room({"model.safetensors": FileDigest(SUBMISSION_BYTES, "")})

        enough = SUBMISSION_BYTES + merge_bytes + RESERVED_BYTES
        with_free(enough)
        with pytest.raises(OutOfRoom, match=f"{enough - 1} bytes free.* need {enough};"):
            with_free(enough - 1)
