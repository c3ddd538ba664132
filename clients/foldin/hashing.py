"""SHA-256 of files on this machine, and whether a file has changed since it was taken."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

READ_SIZE = 4 * 1024 * 1024


@dataclass(frozen=True)
class Digest:
    """The content of a file at one moment.

    Attributes:
      size: bytes.
      sha256: lower-case hexadecimal.
      stamp: identity and time of modification of the file before it was read.
    """

    size: int
    sha256: str
    stamp: tuple[int, ...]


def digest_file(path: Path, on_bytes: Callable[[int], None]) -> Digest:
    """Return size and SHA-256 of a file.

    Args:
      on_bytes: called with the number of bytes read since its last call.

    Raises:
      OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as file:
        stamp = _stamp(os.fstat(file.fileno()))
        while block := file.read(READ_SIZE):
            digest.update(block)
            size += len(block)
            on_bytes(len(block))
    return Digest(size, digest.hexdigest(), stamp)


def is_unchanged(path: Path, digest: Digest) -> bool:
    """Whether path still is the file, of the same length and age, that the digest was taken of."""
    try:
        now = path.stat()
    except OSError:
        return False
    return (now.st_size, _stamp(now)) == (digest.size, digest.stamp)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_mtime_ns)
