"""Pulling a snapshot into a folder on this machine.

Every file is checked against its SHA-256 before the folder is touched; an interrupted pull goes on where it stopped.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from foldin.checkpoint import is_plain
from foldin.connection import Connection
from foldin.decoding import snapshot_of
from foldin.destination import MANIFEST, Destination
from foldin.errors import DataLoss, NotFound, PullError
from foldin.hashing import READ_SIZE, digest_file
from foldin.models import ADAPTER_FOLDER, File, Progress, Snapshot
from foldin.reading import MOST_FETCHES, stream_file
from foldin.tally import Tally
from foldin.v1 import snapshots_pb2 as pb

Files = Mapping[str, File]
"""Name in the folder -> file of the snapshot."""


def model_files(snapshot: Snapshot) -> Files:
    """Return what a snapshot has of a whole model. Raises NotFound."""
    files = {file.name: file for file in snapshot.files if "/" not in file.name}
    if not any(name.endswith(".safetensors") for name in files):
        raise NotFound(f"v{snapshot.version} was published as an adapter only: pull it with --as adapter.")
    return files


def adapter_files(snapshot: Snapshot) -> Files:
    """Return what a snapshot has of an adapter. Raises NotFound."""
    if not snapshot.has_adapter:
        raise NotFound(
            f"v{snapshot.version} has no adapter: versions have one that are merged while the daemon runs with "
            "`foldind serve --publish model --publish adapter`, by a publication that allows it."
        )
    files = {file.name.removeprefix(ADAPTER_FOLDER): file for file in snapshot.files if "/" in file.name}
    return files | {file.name: file for file in snapshot.files if file.name == MANIFEST}


def pull(
    connection: Connection,
    ref: str,
    to: Path,
    on_progress: Callable[[Progress], None],
    choose: Callable[[Snapshot], Files] = model_files,
    finish: Callable[[Path], None] | None = None,
) -> Snapshot:
    """Bring one version of the merged model into the folder `to` and return which one it is.

    Args:
      ref: version or alias; resolved once, so that all files come from one version.
      to: a folder that does not exist, is empty, or was pulled before.
      on_progress: told of `verifying` and `downloading`, in bytes.
      choose: which of its files are wanted.
      finish: called with the folder of verified files before it goes where it is wanted; None: nothing is changed.

    Raises:
      NotFound: no such version or alias, or it is no longer kept, or has no such files.
      PullError: `to` is something else, or the disk is full.
      DataLoss: a file arrived altered twice.
    """
    snapshot = snapshot_of(connection.call(connection.snapshots.Get, pb.GetSnapshotRequest(ref=ref)))
    _require_sound(snapshot)
    files = choose(snapshot)
    label = f"v{snapshot.version}" + ("-adapter" if choose is adapter_files else "")
    destination = Destination(to, label, files)
    try:
        destination.require_usable()
        if not finish and _is_complete(destination.folder, files, on_progress):
            return snapshot
        with destination.partial() as folder:
            _require_space(folder, snapshot.version, files)
            tally = Tally("downloading", _size(files), on_progress)
            for name, file in files.items():
                _fetch(connection, snapshot.version, file, folder / name, tally)
            if finish:
                finish(folder)
            destination.replace(folder)
    except OSError as error:
        raise PullError(f"cannot write {error.filename or destination.folder}: {error.strerror or error}.") from None
    return snapshot


def _require_sound(snapshot: Snapshot) -> None:
    if not snapshot.files:
        raise NotFound(f"v{snapshot.version} is {snapshot.state}: its files are no longer kept. Pull a newer version.")
    names = [file.name for file in snapshot.files]
    unsound = [
        file.name
        for file in snapshot.files
        if not (is_plain(file.name.removeprefix(ADAPTER_FOLDER)) and _is_sha256(file.sha256))
    ]
    if unsound or len(set(names)) != len(names):
        raise PullError(f"the daemon names files that cannot be written safely: {(unsound or names)[0]!r}.")


def _is_sha256(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _size(files: Files) -> int:
    return sum(file.size for file in files.values())


def _is_complete(folder: Path, files: Files, on_progress: Callable[[Progress], None]) -> bool:
    for name, file in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file.size:
            return False
    tally = Tally("verifying", _size(files), on_progress)
    for name, file in files.items():
        if digest_file(folder / name, partial(tally.add, name)).sha256 != file.sha256:
            return False
    return True


def _require_space(folder: Path, version: int, files: Files) -> None:
    needed = _size(files) - sum(path.stat().st_size for path in folder.iterdir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PullError(
            f"v{version} needs {needed / 1e9:.1f} GB more, but {folder.parent} has {free / 1e9:.1f} GB free: "
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
    with path.open("a+b") as out:
        out.seek(0)
        while block := out.read(READ_SIZE):
            digest.update(block)
            received += len(block)
            tally.add(file.name, len(block))
        for piece in stream_file(connection, version, file, received):
            out.write(piece)
            digest.update(piece)
            received += len(piece)
            tally.add(file.name, len(piece))
        out.flush()
        os.fsync(out.fileno())
    return received, digest.hexdigest()
