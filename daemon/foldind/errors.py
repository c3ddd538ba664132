"""Every error that reaches a person: what happened, and what to do next."""

from collections.abc import Sequence
from typing import ClassVar

LONGEST_REASON = 1000
"""Characters."""

_LISTED = 5


class FoldinError(Exception):
    """The root of the tree."""

    status: ClassVar[str] = "INTERNAL"
    """Name of the gRPC status code that a call answers with."""

    def __init__(self, reason: str, hint: str = ""):
        # Names in it may be of any length, and it goes into the ledger and into the trailer of an answer.
        self.reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."
        self.hint = hint
        super().__init__(f"{self.reason}; {hint}" if hint else self.reason)


class CheckpointRefused(FoldinError):
    """A checkpoint cannot be merged into this base. Its submission becomes REJECTED."""

    status = "INVALID_ARGUMENT"


class CheckpointIncomplete(CheckpointRefused):
    """A checkpoint of which a part is missing, as of one that is still being copied."""


class SourceChanged(FoldinError):
    """A file changed between the look at it and the end of its copy."""

    status = "FAILED_PRECONDITION"


class InvalidRequest(FoldinError):
    """A request makes no sense, whatever the state of the daemon."""

    status = "INVALID_ARGUMENT"


class NotFound(FoldinError):
    """No such submission, snapshot, alias or file."""

    status = "NOT_FOUND"


class WrongState(FoldinError):
    """A request that the present state does not allow."""

    status = "FAILED_PRECONDITION"


class Conflict(FoldinError):
    """A request id that already means something else."""

    status = "ALREADY_EXISTS"


class DigestMismatch(FoldinError):
    """Bytes that arrived are not the bytes that were sent."""

    status = "DATA_LOSS"


class Forbidden(FoldinError):
    """A path or name that the daemon does not hand out."""

    status = "PERMISSION_DENIED"


class OffsetOutOfRange(FoldinError):
    """A read beyond the end of a file."""

    status = "OUT_OF_RANGE"


class Busy(FoldinError):
    """Too much in flight: wait and repeat."""

    status = "RESOURCE_EXHAUSTED"


class OutOfRoom(FoldinError):
    """The disk is too full."""

    status = "RESOURCE_EXHAUSTED"


class ShuttingDown(FoldinError):
    """The daemon no longer takes new work."""

    status = "UNAVAILABLE"


class StateError(FoldinError):
    """A state folder that the daemon will not touch until a person has looked at it."""

    status = "FAILED_PRECONDITION"


def listed(names: Sequence[str]) -> str:
    """Return the first names in one line, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"
