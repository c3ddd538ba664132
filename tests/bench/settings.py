"""What the benchmarks are told."""

from pathlib import Path
from typing import NamedTuple


class Settings(NamedTuple):
    """Where things lie that only some of them need; None: nowhere."""

    fusionbench: Path | None
    mergekit: Path | None
    """Interpreters of environments that have the references."""
    suite: Path | None = None
    """A folder with base/ and tasks/<name>/, real fine-tuned models."""
    order: tuple[str, ...] = ()
    """Of the tasks; empty: that of their names."""
    keep: Path | None = None
    """Where merged models are left."""
    rules: tuple[str, ...] = ()
    """Merge rules to measure; empty: all."""
