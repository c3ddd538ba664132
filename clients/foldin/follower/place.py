"""The folder that a follower keeps: its versions, the link to the current one, and who may change it.

    DIR/current            -> versions/v12
    DIR/versions/v12/      whole and verified, since it is renamed there when it is
    DIR/follow.json        the record

Invariant: `current` is absent, or names a folder that was whole and verified before the link was; nothing that a
follower did not put there is changed.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from foldin.errors import PullError
from foldin.follower.durable import point_link, sync_folder, temporary_of
from foldin.follower.record import Record

_VERSIONS = "versions"
_LEFT_OVER = re.compile(r"\.v(\d+)\.(removed|v\d+(-adapter)?\.(partial|replaced))")


class Place:
    """A folder that is locked for this follower; made by `opened`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.current_link = folder / "current"
        self._versions = folder / _VERSIONS
        self._record_file = folder / "follow.json"
        self.record = Record("", None)

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, form: str, rank: int | None) -> Iterator[Self]:
        """Make or open a folder, for one follower at a time.

        Raises:
          PullError: another follower has it, or it holds what is not a follower's, or another form.
          OSError: it cannot be written.
        """
        place = cls(Path(os.path.abspath(folder.expanduser())))  # noqa: PTH100 - links in it stay as they are
        if place.folder.exists() and not place.folder.is_dir():
            raise PullError(f"{place.folder} is a file: name a folder.")
        place.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PullError(
                    f"another `foldin follow` keeps {place.folder}: stop it, or follow into another folder."
                ) from None
            place._take(form, rank)
            yield place
        finally:
            os.close(descriptor)

    def _take(self, form: str, rank: int | None) -> None:
        record = Record.load(self._record_file)
        present = {entry.name for entry in self.folder.iterdir()} - {temporary_of(self._record_file).name}
        if record is None and present:
            raise PullError(
                f"{self.folder} holds {min(present)!r}, which `foldin follow` did not put there: name a folder that is "
                "empty, does not exist, or was followed into before."
            )
        if record and (record.form, record.rank) != (form, rank):
            raise PullError(
                f"{self.folder} holds versions {_described(record.form, record.rank)}, not {_described(form, rank)}: "
                "name another folder."
            )
        if self.current_link.exists() and not self.current_link.is_symlink():
            raise PullError(f"{self.current_link} is no link: move it away.")
        self.save(record or Record(form, rank))  # first: it tells a folder that this was killed in from another's
        self._versions.mkdir(exist_ok=True)

    def save(self, record: Record) -> None:
        """Keep a record. Raises OSError."""
        record.save(self._record_file)
        self.record = record

    def path(self, version: int) -> Path:
        """Return the folder of a version, whether it is there or not."""
        return self._versions / f"v{version}"

    @property
    def current(self) -> int | None:
        """The version that `current` points at; None: it points at none."""
        try:
            match = re.fullmatch(_VERSIONS + r"/v(\d+)", str(self.current_link.readlink()))
        except FileNotFoundError:
            return None
        version = int(match[1]) if match else None
        return version if version and self.path(version).is_dir() else None

    def point(self, version: int) -> None:
        """Point `current` at a version that is whole. Raises OSError."""
        sync_folder(self.path(version))
        sync_folder(self._versions)
        point_link(self.current_link, f"{_VERSIONS}/v{version}")

    def clear(self) -> None:
        """Remove `current`. Raises OSError."""
        self.current_link.unlink(missing_ok=True)
        sync_folder(self.folder)

    def prune(self, newest: int, kept: Collection[int | None]) -> None:
        """Remove old versions, and what broken pulls of them left.

        Args:
          newest: how many of the newest to keep.
          kept: what is kept however old it is; `current`, and the versions in the record, are too.

        Raises:
          OSError: one cannot be removed.
        """
        present = sorted(
            int(entry.name[1:])
            for entry in self._versions.iterdir()
            if re.fullmatch(r"v[1-9]\d*", entry.name) and not entry.is_symlink()
        )
        stays = {*present[-newest:], *kept, self.current, self.record.loaded, self.record.good, self.record.previous}
        for version in present:
            if version not in stays:
                # Renamed first: a version that lies under its name is whole.
                self.path(version).rename(self._versions / f".v{version}.removed")
        for entry in self._versions.iterdir():
            match = _LEFT_OVER.fullmatch(entry.name)
            if match and (match[2] == "removed" or int(match[1]) not in kept):
                shutil.rmtree(entry)


def _described(form: str, rank: int | None) -> str:
    return "as models" if form == "model" else "as adapters" + (f" of rank {rank}" if rank else "")
