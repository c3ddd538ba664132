"""The state folder: where everything lies, and who may use it.

    foldin.toml  plan.json  base/  ledger.sqlite  submissions/<id>/  merge/v<N>/  bases/<key>/  snapshots/v<N>/
    snapshots/latest

Invariants: a folder under its final name is complete; the ledger row is the commit point; nothing is changed in place.
"""

import fcntl
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from foldind.errors import StateError
from foldind.state.durable import TEMPORARY_SUFFIX, make_folder, remove

_LOCK = "lock"
_VERSION_NAME = re.compile(r"v([1-9][0-9]*)")


class Temporaries(NamedTuple):
    """The folders that an attempt at a version writes to, under temporary names."""

    state: Path
    """For the accumulated state."""
    snapshot: Path
    """For the snapshot."""
    bases: Path
    """For the bases of the accumulated state."""


class StateFolder:
    """The paths of one state folder; as a context manager, its exclusive use."""

    def __init__(self, root: Path):
        self.root = root.absolute()
        self.configuration = self.root / "foldin.toml"
        self.plan = self.root / "plan.json"
        self.base = self.root / "base"
        self.ledger = self.root / "ledger.sqlite"
        self.submissions = self.root / "submissions"
        self.merge = self.root / "merge"
        self.bases = self.root / "bases"
        self.snapshots = self.root / "snapshots"
        self._lock = -1

    def check_in_place(self) -> None:
        """Check that this is still the folder whose use was taken, before anything in it is deleted or renamed.

        Raises:
          StateError: another one lies in its place, as after a backup was restored beneath a running daemon.
        """
        taken = os.fstat(self._lock)
        try:
            found = (self.root / _LOCK).stat()
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != (taken.st_dev, taken.st_ino):
            raise StateError(
                f"{self.root} is not the folder that this daemon started with",
                "stop the daemon before you move or restore its state folder, and start it again now",
            )

    def submission(self, submission_id: str) -> Path:
        """Return where the bytes of a submission lie."""
        return self.submissions / submission_id

    def accumulated(self, version: int) -> Path:
        """Return where the accumulated state after a version lies."""
        return self.merge / f"v{version}"

    def snapshot(self, version: int) -> Path:
        """Return where the snapshot of a version lies."""
        return self.snapshots / f"v{version}"

    def temporary(self, version: int) -> Temporaries:
        """Return new names for an attempt at a version; no folder is made."""
        # An attempt has names of its own: a worker that outlived its daemon cannot write where its successor does.
        name = f"v{version}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        return Temporaries(self.merge / name, self.snapshots / name, self.bases / name)

    def __enter__(self) -> Self:
        self._lock = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise StateError(
                f"{self.root} is in use by another process", "stop the daemon that serves it first"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def make_folders(self) -> None:
        """Create the folders that are missing. Raises OSError."""
        for folder in (self.submissions, self.merge, self.bases, self.snapshots):
            make_folder(folder)

    def discard_unrecorded(self, last_version: int) -> None:
        """Remove what an interruption left: temporary names, and a sealed version that was never recorded.

        Raises:
          OSError: it could not be removed.
        """
        for folder in (self.merge, self.snapshots):
            for path in folder.iterdir():
                if path.name.endswith(TEMPORARY_SUFFIX):
                    remove(path)
            remove(folder / f"v{last_version + 1}")
        for path in (*self.bases.glob(f"*{TEMPORARY_SUFFIX}"), *self.bases.glob(f"*/*{TEMPORARY_SUFFIX}")):
            remove(path)

    def discard_half_copied(self) -> None:
        """Remove submissions that were being copied in when the daemon died. Raises OSError."""
        for path in self.submissions.glob(f"*{TEMPORARY_SUFFIX}"):
            remove(path)

    def last_written(self, submission_id: str) -> float:
        """Return when a byte of a submission arrived last, in seconds since the epoch; 0 if none is there."""
        with suppress(FileNotFoundError):  # it may be withdrawn and removed meanwhile
            return max((path.stat().st_mtime for path in self.submission(submission_id).iterdir()), default=0.0)
        return 0.0

    def accumulated_versions(self) -> list[int]:
        """Return the versions whose accumulated state is there."""
        return _versions_in(self.merge)

    def snapshot_versions(self) -> list[int]:
        """Return the versions whose snapshot is there."""
        return _versions_in(self.snapshots)


def _versions_in(folder: Path) -> list[int]:
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _VERSION_NAME.fullmatch(path.name)))
