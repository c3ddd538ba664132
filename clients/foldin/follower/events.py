"""What a follower tells, and what it hands to hooks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from foldin.moments import iso


class EventKind(StrEnum):
    """What happened."""

    WAITING = "waiting"
    """The alias names nothing yet."""
    PULLING = "pulling"
    """A version is being fetched or verified."""
    PULL_FAILED = "pull_failed"
    """It could not be; it is tried again."""
    SWAPPED = "swapped"
    """`current` points at a version; the hooks come next."""
    APPLIED = "applied"
    """The hooks have succeeded."""
    ROLLED_BACK = "rolled_back"
    """A hook failed; `current` and the servers are where they were."""
    FAILED = "failed"
    """A hook failed, and there is no version that the servers are known to have."""
    UNCHANGED = "unchanged"
    """Nothing had to be done; only with `once`."""
    UNREACHABLE = "unreachable"
    """The daemon went away; it is waited for."""
    REACHABLE = "reachable"
    """The daemon answers again."""
    WARNING = "warning"
    """Something beside the swap failed: a webhook, the metrics file."""


OUTCOMES = (EventKind.APPLIED, EventKind.ROLLED_BACK, EventKind.FAILED)
"""How a swap can end."""


@dataclass(frozen=True)
class Event:
    """Something that a follower did or met.

    Attributes:
      version: the version that it is about.
      current: the version that `current` points at; None: there is no such link.
      message: the same as a sentence.
    """

    kind: EventKind
    alias: str
    version: int | None
    current: int | None
    message: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {
            "event": str(self.kind),
            "at": iso(self.at),
            "alias": self.alias,
            "version": self.version,
            "current": self.current,
            "message": self.message,
        }


@dataclass(frozen=True)
class Swap:
    """The change that hooks carry out.

    Attributes:
      version: the version that is current now.
      snapshot: absolute path of its folder, which never changes.
      current: absolute path of the link that points at it.
      previous: the version that was current before; None where there was none.
    """

    alias: str
    version: int
    snapshot: Path
    current: Path
    previous: int | None


Hook = Callable[[Swap], object]
"""Brings a server to a version; an exception means that it failed."""


@runtime_checkable
class Withdrawable(Protocol):
    """A hook that can take back a version which failed, where there is none to go back to."""

    def withdraw(self) -> None:
        """Leave the server without a version."""
