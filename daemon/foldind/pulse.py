"""Whether the merge loop gets on: every step of it says when the next sign of life is due."""

import time

STEP_SECONDS = 120
"""What one step of the loop's own (not the worker's) may take before it counts as stuck."""


class Pulse:
    """The sign of life of one loop."""

    def __init__(self) -> None:
        self._due = 0.0
        self.beat()

    def beat(self, pause: float = 0) -> None:
        """Show that the loop got here; `pause` is for how many seconds it goes to sleep now."""
        self._due = time.monotonic() + pause + STEP_SECONDS

    @property
    def beats(self) -> bool:
        """Whether the next sign is not overdue."""
        return time.monotonic() < self._due
