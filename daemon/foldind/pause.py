"""What the merge loop waits for before it goes on: a disk, or a person."""

import logging
from typing import Literal, get_args

from foldind.errors import StateError
from foldind.state.durable import is_disk_trouble

log = logging.getLogger(__name__)

PauseKind = Literal["disk", "error"]
PAUSES: tuple[PauseKind, ...] = get_args(PauseKind)
"""What merging can be paused by: a disk that is full or failing, or anything else."""


class Pause:
    """Why nothing is merged at present; each reason is logged once."""

    def __init__(self) -> None:
        self.reason = ""
        """A sentence; empty when all is well."""
        self.kind: PauseKind | None = None
        """The same as one word."""

    def begin(self, error: BaseException) -> bool:
        """Pause because of an error, and tell whether that is news."""
        on_disk = is_disk_trouble(error)
        hint = "make room or mend the disk" if on_disk else "the daemon's log has the details"
        reason = f"paused: {error}; {hint}; the daemon tries again every few seconds"
        if reason == self.reason:
            return False
        log.error("%s", reason, exc_info=None if on_disk or isinstance(error, StateError) else error)
        self.reason, self.kind = reason, "disk" if on_disk else "error"
        return True

    def end(self) -> bool:
        """Go on, and tell whether that is news."""
        if not self.reason:
            return False
        log.info("going on")
        self.reason, self.kind = "", None
        return True
