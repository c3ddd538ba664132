"""Pulling a snapshot into a folder on this machine.

Every file is checked against its SHA-256 before the folder is touched; an interrupted pull goes on where it stopped.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from foldin.checkpoint import is_plain
from foldin.connection import Connection, is_outage
from foldin.decoding import snapshot_of
from foldin.destination import Destination
from foldin.errors import DataLoss, FoldinError, NotFound, PullError, ServerUnavailable
from foldin.hashing import READ_SIZE, digest_file
from foldin.models import File, Progress, Snapshot
from foldin.tally import Tally
from foldin.v1 import snapshots_pb2 as pb

MOST_FETCHES = 2  # of one file whose bytes arrive altered


def pull(connection: Connection, ref: str, to: Path, on_progress: Callable[[Progress], None]) -> Snapshot:
    """Bring one version of the merged model into the folder `to` and return which one it is.

    Args:
      ref: version or alias; resolved once, so that all files come from one version.
      to: a folder that does not exist, is empty, or was pulled before.
      on_progress: told of `verifying` and `downloading`, in bytes.

    Raises:
      NotFound: no such version or alias, or it is no longer kept.
      PullError: `to` is something else, or the disk is full.
      DataLoss: a file arrived altered twice.
    """
    snapshot = snapshot_of(connection.call(connection.snapshots.Get, pb.GetSnapshotRequest(ref=ref)))
    _require_sound(snapshot)
    destination = Destination(to, snapshot)
    try:
        destination.require_usable()
        if _is_complete(destination.folder, snapshot, on_progress):
            return snapshot
        with destination.partial() as folder:
            _require_space(folder, snapshot)
            tally = Tally("downloading", snapshot.size, on_progress)
            for file in snapshot.files:
                _fetch(connection, snapshot.version, file, folder / file.name, tally)
            destination.replace(folder)
    except OSError as error:
        raise PullError(f"cannot write {error.filename or destination.folder}: {error.strerror or error}.") from None
    return snapshot


def _require_sound(snapshot: Snapshot) -> None:
    if not snapshot.files:
        raise NotFound(f"v{snapshot.version} is {snapshot.state}: its files are no longer kept. Pull a newer version.")
    names = [file.name for file in snapshot.files]
    unsound = [file.name for file in snapshot.files if not (is_plain(file.name) and _is_sha256(file.sha256))]
    if unsound or len(set(names)) != len(names):
        raise PullError(f"the daemon names files that cannot be written safely: {(unsound or names)[0]!r}.")


def _is_sha256(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _is_complete(folder: Path, snapshot: Snapshot, on_progress: Callable[[Progress], None]) -> bool:
    for file in snapshot.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            return False
    tally = Tally("verifying", snapshot.size, on_progress)
    for file in snapshot.files:
        if digest_file(folder / file.name, partial(tally.add, file.name)).sha256 != file.sha256:
            return False
    return True


def _require_space(folder: Path, snapshot: Snapshot) -> None:
    needed = snapshot.size - sum(path.stat().st_size for path in folder.iterdir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PullError(
            f"v{snapshot.version} needs {needed / 1e9:.1f} GB more, but {folder.parent} has {free / 1e9:.1f} GB free: "
            "make room, or pull to another disk. What is there already is kept."
        )


def _fetch(connection: Connection, version: int, file: File, path: Path, tally: Tally) -> None:
    for _ in range(MOST_FETCHES):
        received, sha256 = _receive(connection, version, file, path, tally)
        if sha256 == file.sha256:
            return
        path.unlink()
        tally.add(file.name, -received)
    raise DataLoss(
        f"{file.name} of v{version} arrived altered {MOST_FETCHES} times: its SHA-256 is {sha256}, not {file.sha256}. "
        "Check the network and the daemon's disk (`foldind fsck`), then pull again."
    )


def _receive(connection: Connection, version: int, file: File, path: Path, tally: Tally) -> tuple[int, str]:
    digest = hashlib.sha256()
    received = 0
    patience = connection.patience()
    with path.open("a+b") as out:
        out.seek(0)
        while block := out.read(READ_SIZE):
            digest.update(block)
            received += len(block)
            tally.add(file.name, len(block))
        while received < file.size:
            request = pb.ReadFileRequest(version=version, file=file.name, offset=received)
            try:
                for response in connection.stream(connection.snapshots.ReadFile, request):
                    out.write(response.data)
                    digest.update(response.data)
                    received += len(response.data)
                    tally.add(file.name, len(response.data))
                    patience.reset()
                if received < file.size:
                    raise ServerUnavailable(f"{file.name} of v{version} broke off after {received} bytes: pull again.")
            except FoldinError as error:
                if not is_outage(error):
                    raise
                patience.pause(error)
        out.flush()
        os.fsync(out.fileno())
    return received, digest.hexdigest()
