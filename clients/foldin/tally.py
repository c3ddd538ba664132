"""Counting the bytes of one stage of a transfer."""

from collections.abc import Callable

from foldin.models import Progress


class Tally:
    """A running count that reports every step.

    Args:
      stage: as in Progress.
      total: bytes of the stage.
      on_progress: told after every step.
    """

    def __init__(self, stage: str, total: int, on_progress: Callable[[Progress], None]) -> None:
        self._stage = stage
        self._total = total
        self._done = 0
        self._on_progress = on_progress

    def add(self, item: str, size: int) -> None:
        """Count size bytes of the file `item`; negative where they have to come again."""
        self._done += size
        self._on_progress(Progress(self._stage, self._done, self._total, item))
