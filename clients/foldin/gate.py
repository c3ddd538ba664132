"""What the daemon's gate said of a snapshot."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from foldin.moments import iso


@dataclass(frozen=True)
class Gate:
    """The verdict of the operator's gate, a command that every new version has to pass before an alias names it.

    Attributes:
      verdict: WAITING, RUNNING, PASSED, FAILED, or SKIPPED (rolled back or pruned before its turn).
      reason: why it failed or was skipped; empty otherwise.
      scores: what the gate measured, by name.
      judged_at: when it passed or failed; None before.
      seconds: that the gate took.
    """

    verdict: str
    reason: str
    scores: Mapping[str, float]
    judged_at: datetime | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "scores": dict(self.scores),
            "judged_at": iso(self.judged_at) if self.judged_at else None,
            "seconds": self.seconds,
        }
