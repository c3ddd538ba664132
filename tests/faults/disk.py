"""A small file system of its own, to be filled."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, root: Path):
        self.root = root
        self._ballast = root / "ballast"

    @property
    def free(self) -> int:
        """Bytes."""
        disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all room but so many bytes."""
        size = self._ballast.stat().st_size if self._ballast.exists() else 0
        with self._ballast.open("ab") as file:
            os.posix_fallocate(file.fileno(), size, self.free - leave)

    def make_room(self) -> None:
        """Give it all back."""
        self._ballast.unlink()


class NotPermittedError(Exception):
    """This user may not mount."""


@contextmanager
def small_disk(root: Path, size: int) -> Iterator[SmallDisk]:
    """Mount a tmpfs of so many bytes.

    Raises:
      NotPermittedError: this user may not.
    """
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "foldin-tests", root],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        raise NotPermittedError(mounted.stderr.strip())
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)
