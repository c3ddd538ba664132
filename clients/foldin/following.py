"""Following what a daemon does, through its restarts."""

from collections.abc import Callable, Iterator
from typing import Any

from foldin.connection import Connection, is_outage
from foldin.decoding import snapshot_of, submission_of
from foldin.errors import DataLoss, FoldinError, Refused, ServerUnavailable
from foldin.models import Progress, Snapshot, Submission
from foldin.v1 import snapshots_pb2, submissions_pb2


def watch_submission(connection: Connection, id: str) -> Iterator[Submission]:
    """Yield a submission as it is now and after each change; ends with the state that is final."""
    request = submissions_pb2.WatchSubmissionRequest(id=id)
    last = None
    for message in _endless(connection, connection.submissions.Watch, request):
        submission = submission_of(message)
        if submission != last:
            yield submission
        if submission.final:
            return
        last = submission


def wait_for_merge(connection: Connection, id: str, on_progress: Callable[[Progress], None]) -> Submission:
    """Return a submission once it is merged.

    Raises:
      Refused: it ended otherwise.
    """
    for submission in watch_submission(connection, id):
        if submission.progress:
            on_progress(submission.progress)
        if submission.refused:
            raise Refused(submission)
    return submission


def watch_alias(connection: Connection, alias: str) -> Iterator[Snapshot]:
    """Yield the snapshot an alias names, if there is one, and then each one it moves to, without end."""
    request = snapshots_pb2.WatchSnapshotsRequest(alias=alias)
    last = None
    for message in _endless(connection, connection.snapshots.Watch, request):
        # After a reconnection the present one comes again.
        if message.version != last:
            yield snapshot_of(message)
        last = message.version


def publish(connection: Connection, publication: str, alias: str, on_progress: Callable[[Progress], None]) -> Snapshot:
    """Have the newest state published in another way, and return the new version once it is there."""
    request = snapshots_pb2.PublishRequest(publication=publication, alias=alias)
    for message in connection.stream(connection.snapshots.Publish, request):
        if message.HasField("snapshot"):
            return snapshot_of(message.snapshot)
        on_progress(Progress(message.stage, message.done, message.total, message.tensor))
    raise DataLoss("the daemon ended the answer without the new version.")


def _endless(connection: Connection, method: Callable[..., Any], request: object) -> Iterator[Any]:
    patience = connection.patience()
    while True:
        try:
            for message in connection.stream(method, request):
                yield message
                patience = connection.patience()
            raise ServerUnavailable(f"the Foldin daemon at {connection.server} ended the watch: watch again.")
        except FoldinError as error:
            if not is_outage(error):
                raise
            patience.pause(error)
