"""Choosing the linear algebra, once, when a state folder is made."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

from foldind.errors import FoldinError
from foldind.worker.supervisor import worker_environment

MAX_ERROR = 1e-6
"""Relative, of a float32 product: float32 itself costs 3e-7, and bfloat16 in its place 3e-3."""


class Choice(NamedTuple):
    """The faster backend among those that are exact."""

    name: str
    figures: str
    """What was measured, a sentence."""


def choose_backend(threads: int) -> Choice:
    """Measure in a process of its own, and choose; takes some seconds.

    Args:
      threads: per matrix product.

    Raises:
      FoldinError: the measurement fails.
    """
    command = [sys.executable, "-m", "foldind.worker.selftest"]
    environment = {**os.environ, **worker_environment(threads)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise FoldinError(
            f"the self-test of the linear algebra failed: {run.stderr.strip()[-500:]}", "choose one with --backend"
        )
    measured = json.loads(run.stdout)
    exact = {name: figures for name, figures in measured.items() if figures["error"] <= MAX_ERROR}
    if not exact:
        raise FoldinError("no linear algebra here is exact to float32", "unset what makes products less precise")
    # A merge spends its time on products, and what is done between merges on decompositions: one counts as the other.
    name = min(exact, key=lambda name: exact[name]["product_seconds"] + exact[name]["decomposition_seconds"])
    told = ", ".join(
        f"{name} {1000 * figures['product_seconds']:.0f} ms a product and "
        f"{1000 * figures['decomposition_seconds']:.0f} ms a decomposition"
        for name, figures in measured.items()
    )
    return Choice(name, told)
