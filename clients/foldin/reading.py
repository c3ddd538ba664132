"""Reading one file of a snapshot from the daemon, through its outages."""

from collections.abc import Generator

from foldin.connection import Connection, is_outage
from foldin.errors import FoldinError, ServerUnavailable
from foldin.models import File
from foldin.v1 import snapshots_pb2 as pb

MOST_FETCHES = 2  # of one file whose bytes arrive altered


def stream_file(connection: Connection, version: int, file: File, offset: int = 0) -> Generator[bytes, None, None]:
    """Yield the bytes of a file from an offset to its end, as they arrive; what broke off is gone on with.

    They are not checked against the file's SHA-256.

    Raises:
      NotFound: the version is no longer kept.
      FoldinError: an outage outlasted the patience, or whatever else the daemon answered.
    """
    patience = connection.patience()
    while offset < file.size:
        request = pb.ReadFileRequest(version=version, file=file.name, offset=offset)
        try:
            for response in connection.stream(connection.snapshots.ReadFile, request):
                offset += len(response.data)
                patience.reset()
                yield response.data
            if offset < file.size:
                raise ServerUnavailable(f"{file.name} of v{version} broke off after {offset} bytes: try again.")
        except FoldinError as error:
            if not is_outage(error):
                raise
            patience.pause(error)
