"""One tree of errors: every one is a sentence that says what happened and what to do next."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foldin.models import Submission

_LISTED = 3


class FoldinError(Exception):
    """Anything that keeps the client from doing what was asked.

    Attributes:
      code: name of the gRPC status code, or of the closest one where the problem is on this machine.
    """

    code = "UNKNOWN"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.code


class ServerUnavailable(FoldinError):
    """The daemon cannot be reached, or does not answer in time."""

    code = "UNAVAILABLE"


class NotFound(FoldinError):
    """There is no such submission, version, alias or file."""

    code = "NOT_FOUND"


class InvalidArgument(FoldinError):
    """What was asked for is malformed."""

    code = "INVALID_ARGUMENT"


class FailedPrecondition(FoldinError):
    """What was asked for is not possible in the present state."""

    code = "FAILED_PRECONDITION"


class AlreadyExists(FoldinError):
    """The request_id was used for other files."""

    code = "ALREADY_EXISTS"


class ResourceExhausted(FoldinError):
    """The daemon lacks disk space or accepts no more at the moment."""

    code = "RESOURCE_EXHAUSTED"


class PermissionDenied(FoldinError):
    """The daemon does not allow this."""

    code = "PERMISSION_DENIED"


class DataLoss(FoldinError):
    """Bytes arrived altered, also when they were sent again."""

    code = "DATA_LOSS"


class CheckpointError(FoldinError):
    """The checkpoint on this machine cannot be sent."""

    code = "INVALID_ARGUMENT"


class PullError(FoldinError):
    """The folder to pull into cannot be used."""

    code = "FAILED_PRECONDITION"


class HookFailed(FoldinError):
    """A server, or a command, could not be brought to a version."""

    code = "ABORTED"


class Refused(FoldinError):
    """A submission ended as REJECTED, QUARANTINED or WITHDRAWN.

    Attributes:
      submission: the submission in its final state.
    """

    code = "FAILED_PRECONDITION"

    def __init__(self, submission: "Submission") -> None:
        super().__init__(submission.verdict)
        self.submission = submission


_BY_CODE: Mapping[str, type[FoldinError]] = {
    kind.code: kind
    for kind in (
        ServerUnavailable,
        NotFound,
        InvalidArgument,
        FailedPrecondition,
        AlreadyExists,
        ResourceExhausted,
        PermissionDenied,
        DataLoss,
    )
} | {"DEADLINE_EXCEEDED": ServerUnavailable, "UNAUTHENTICATED": PermissionDenied}


def error_of(code: str, details: str, server: str) -> FoldinError:
    """Return the error for a failed call.

    Args:
      code: name of the gRPC status code.
      details: the sentence that came with it, from the daemon or from the transport.
      server: HOST:PORT of the daemon.
    """
    if code == "UNAVAILABLE":
        # The transport nests its reasons; the last one is the one that tells something.
        reason = details.rsplit(": ", 1)[-1] if details.startswith("failed to connect") else details
        details = (
            f"cannot reach the Foldin daemon at {server}: is it running? "
            f"Start it with `foldind serve`, or name another address with --server or FOLDIN_SERVER ({reason})."
        )
    elif code == "DEADLINE_EXCEEDED":
        details = f"the Foldin daemon at {server} did not answer in time: is it overloaded? Try again."
    elif code == "UNIMPLEMENTED":
        details = f"what listens at {server} lacks this call: is it a Foldin daemon, and of this version? ({details})"
    return _BY_CODE.get(code, FoldinError)(details or f"the Foldin daemon at {server} answered {code}.", code)


def listed(names: Sequence[str]) -> str:
    """Return the first names in one line, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"
