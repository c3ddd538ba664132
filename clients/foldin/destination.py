"""The folder that a snapshot is pulled into, and the hidden folder beside it where it is put together.

Invariant: the folder is either what it was or one whole version; nothing that Foldin did not put there is deleted.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from foldin.errors import PullError
from foldin.models import ADAPTER_FOLDER

MANIFEST = "foldin.json"


class Destination:
    """A folder to pull one version into.

    Args:
      folder: the folder; a link is followed and stays a link.
      label: of what is to be there; another one is put together elsewhere.
      names: of the files that are to be there.
    """

    def __init__(self, folder: Path, label: str, names: Collection[str]) -> None:
        self.folder = Path(os.path.realpath(folder.expanduser()))
        self._names = set(names)
        self._partial = self._beside(f"{label}.partial")
        self._replaced = self._beside(f"{label}.replaced")

    def _beside(self, ending: str) -> Path:
        return self.folder.parent / f".{self.folder.name}.{ending}"

    def require_usable(self) -> None:
        """Make sure that replacing the folder loses nothing.

        Raises:
          PullError: it holds something that was not pulled, or cannot be renamed.
        """
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise PullError(f"{self.folder} is a file: name a folder.")
        if self.folder.is_mount():
            raise PullError(f"{self.folder} is a mount point and cannot be replaced: name a folder inside it.")
        present = {entry.name for entry in self.folder.iterdir()}
        if present and MANIFEST not in present:
            raise PullError(
                f"{self.folder} holds files that Foldin did not put there: name a folder that is empty, "
                "does not exist, or was pulled before."
            )
        foreign = sorted(present - self._names - _listed(self.folder / MANIFEST) - {MANIFEST})
        if foreign:
            raise PullError(
                f"{self.folder} holds {foreign[0]!r} beside the model, which replacing it would delete: move it away."
            )

    @contextmanager
    def partial(self) -> Iterator[Path]:
        """Open the hidden folder for this version, with what an earlier pull left in it, for one process at a time.

        Raises:
          PullError: another process is pulling the same version to the same place.
        """
        self._partial.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not _lock(descriptor, self._partial):
                raise PullError(f"another pull into {self.folder} is under way: wait for it.")
            yield self._partial
        finally:
            os.close(descriptor)

    def replace(self, partial: Path) -> None:
        """Put the finished hidden folder in place of the folder.

        Raises:
          PullError: something else came into the folder meanwhile.
        """
        for entry in partial.iterdir():
            if entry.name not in self._names:
                _remove(entry)
        self.require_usable()
        if self.folder.exists():
            _remove(self._replaced)
            self.folder.rename(self._replaced)
            try:
                partial.rename(self.folder)
            except OSError:
                self._replaced.rename(self.folder)
                raise
        else:
            partial.rename(self.folder)
        self._sweep()

    def _sweep(self) -> None:
        left_over = re.compile(re.escape(f".{self.folder.name}.") + r"v\d+(-adapter)?\.(partial|replaced)")
        for entry in self.folder.parent.iterdir():
            if left_over.fullmatch(entry.name) and entry.is_dir():
                descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    if _lock(descriptor, entry):
                        _remove(entry)
                finally:
                    os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), folder.stat())  # not renamed since it was opened
    except (BlockingIOError, FileNotFoundError):
        return False


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _listed(manifest: Path) -> set[str]:
    """The names that the files of a manifest have in a folder, whether it was pulled as a model or as an adapter."""
    try:
        files = json.loads(manifest.read_bytes())["files"]
        return {name.removeprefix(ADAPTER_FOLDER) for name in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
