"""Dropping a checkpoint into the watched folder, and waiting for its receipt."""

import json
import shutil
import time
from typing import Any

from commands import ROOT, show
from rich.console import Console

FILED_SECONDS = 60


def drop(console: Console, checkpoint: str, inbox: str) -> dict[str, Any]:
    """Copy a model folder into the inbox, and return the receipt once it was filed.

    Args:
      console: shows the command.
      checkpoint: the model folder, relative to the repository.
      inbox: the watched folder, likewise.

    Raises:
      RuntimeError: it was refused, or nothing became of it.
    """
    name = checkpoint.rpartition("/")[2]
    show(console, "cp", "-r", checkpoint, f"{inbox}/")
    shutil.copytree(ROOT / checkpoint, ROOT / inbox / name)
    deadline = time.monotonic() + FILED_SECONDS
    while time.monotonic() < deadline:
        for outcome in ("accepted", "rejected"):
            filed = ROOT / inbox / outcome / name
            if not filed.exists():
                continue
            receipt = json.loads(filed.with_name(f"{name}.json").read_text())
            if outcome == "rejected":
                raise RuntimeError(f"{name} was refused: {receipt['reason']}")
            return receipt
        time.sleep(0.05)
    raise RuntimeError(f"{name} still lies in {inbox} after {FILED_SECONDS} s; see the daemon's log")
