"""Every error that reaches a person: what happened, and what to do next."""

from typing import ClassVar


class FoldinError(Exception):
    """The root of the tree."""

    status: ClassVar[str] = "INTERNAL"
    """Name of the gRPC status code that a call answers with."""

    def __init__(self, reason: str, hint: str = ""):
        self.reason = reason
        self.hint = hint
        super().__init__(f"{reason}; {hint}" if hint else reason)


class CheckpointRefused(FoldinError):
    """A checkpoint cannot be merged into this base. Its submission becomes REJECTED."""

    status = "INVALID_ARGUMENT"


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
