"""What the benchmarks are told."""

from pathlib import Path
from typing import NamedTuple


class Settings(NamedTuple):
    """Interpreters of environments that have the references; None: there is none."""

    fusionbench: Path | None
    mergekit: Path | None
