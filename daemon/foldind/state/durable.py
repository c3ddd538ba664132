"""Durable writing. The only module that may fsync or rename.

Nothing is ever changed in place: write under a temporary name, fsync, rename, fsync the folder.
"""

import errno
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

TEMPORARY_SUFFIX = ".tmp"
REMOVED_SUFFIX = f".removed{TEMPORARY_SUFFIX}"
"""What `remove` adds to the name of a folder: whoever finds one may remove it."""
BLOCK_BYTES = 4 * 1024 * 1024

_FICLONE = 0x40049409
_DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})
_DISK_SQLITE_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY})


class FileDigest(NamedTuple):
    """A file's length in bytes and the lower-case hexadecimal SHA-256 of its content."""

    size: int
    sha256: str


class DurableFile:
    """A new file of known length, written front to back and hashed on the way.

    A context manager: left without `finish`, or by an exception, the file is removed.
    """

    def __init__(self, path: Path, size: int):
        self._path = path
        self._size = size
        self._written = 0
        self._digest = sha256()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._finished = False
        try:
            preallocate(self._descriptor, size)
        except OSError:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        if kind is not None or not self._finished:
            self._path.unlink(missing_ok=True)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
          OSError: ENOSPC, EIO and the like.
          ValueError: more than the length announced.
        """
        if self._written + len(data) > self._size:
            raise ValueError(f"{self._path.name} would grow beyond the {self._size} bytes announced")
        write_at(self._descriptor, data, self._written)
        self._digest.update(data)
        self._written += len(data)

    def digest(self) -> bytes:
        """Return the SHA-256 of what was written so far, 32 bytes."""
        return self._digest.digest()

    def finish(self) -> FileDigest:
        """Make the content durable (the folder is the caller's) and return its digest.

        Raises:
          OSError: it could not be made durable.
          ValueError: fewer bytes were written than announced.
        """
        if self._written != self._size:
            raise ValueError(f"{self._path.name} has {self._written} of {self._size} bytes")
        os.fsync(self._descriptor)
        self._finished = True
        return FileDigest(self._size, self._digest.hexdigest())


def preallocate(descriptor: int, size: int) -> None:
    """Reserve the disk space of a file, so that a full disk shows before anything is written.

    Raises:
      OSError: ENOSPC and the like.
    """
    if size:
        os.posix_fallocate(descriptor, 0, size)


@contextmanager
def open_for_writing(path: Path) -> Iterator[int]:
    """Open a file that is there, as it is, and yield its descriptor. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all bytes at an offset. Raises OSError."""
    view = memoryview(data).cast("B")
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def write_file(path: Path, content: bytes) -> FileDigest:
    """Write a small file durably, in place of any file of that name. Raises OSError."""
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    temporary.unlink(missing_ok=True)
    with DurableFile(temporary, len(content)) as file:
        file.write(content)
        digest = file.finish()
    temporary.rename(path)
    sync(path.parent)
    return digest


def copy_file(source: Path, target: Path) -> FileDigest:
    """Copy a file durably (the folder is the caller's), sharing its blocks where the file system can.

    Raises:
      OSError: it cannot be read or written; the target is removed.
    """
    with source.open("rb") as reader:
        return copy_open_file(reader, target)


def copy_open_file(reader: BinaryIO, target: Path, before_block: Callable[[], None] = lambda: None) -> FileDigest:
    """As `copy_file`, of a file that is open for reading and stands at its beginning.

    Args:
      reader: the file.
      target: where the copy goes.
      before_block: called every few megabytes; may raise, to end the copy.
    """
    size = os.fstat(reader.fileno()).st_size
    if _cloned(reader.fileno(), target):
        sync(target)
        return digest_file(target, before_block)
    with DurableFile(target, size) as writer:
        left = size
        while left and (block := reader.read(min(BLOCK_BYTES, left))):
            before_block()
            writer.write(block)
            left -= len(block)
        if left:
            raise OSError(errno.EIO, "the file was cut short while it was being copied", str(reader.name))
        return writer.finish()


def digest_file(path: Path, before_block: Callable[[], None] = lambda: None, length: int = 2**63) -> FileDigest:
    """Return the digest of a file, or of its first `length` bytes; raises OSError.

    `before_block` is called every few megabytes.
    """
    digest, size = sha256(), 0
    with path.open("rb") as file:
        while block := file.read(min(BLOCK_BYTES, length - size)):
            before_block()
            digest.update(block)
            size += len(block)
    return FileDigest(size, digest.hexdigest())


def seal(temporary: Path, final: Path) -> None:
    """Give a folder of files that are durable themselves its final name. Raises OSError."""
    sync(temporary)
    temporary.rename(final)
    sync(final.parent)


def move(source: Path, target: Path) -> None:
    """Give a file, link or folder another name on the same device, durably. Raises OSError (EXDEV: another device)."""
    source.rename(target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def move_files(source: Path, target: Path) -> None:
    """Move the files of a folder into another on the same device, in place of what has their names. Raises OSError."""
    for path in source.iterdir():
        path.rename(target / path.name)
    sync(target)
    sync(source)


def make_folder(path: Path) -> None:
    """Create a folder durably, unless it exists. Raises OSError."""
    path.mkdir(exist_ok=True)
    sync(path.parent)


def replace_symlink(link: Path, target: str) -> None:
    """Point a symbolic link at a target, atomically. Raises OSError."""
    if link.is_symlink() and str(link.readlink()) == target:
        return
    temporary = link.with_name(f".{link.name}{TEMPORARY_SUFFIX}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(link)
    sync(link.parent)


def remove(path: Path) -> None:
    """Remove a file, link or folder, if it is there; no half of it is ever left under its name. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        if not path.name.endswith(TEMPORARY_SUFFIX):
            doomed = path.with_name(path.name + REMOVED_SUFFIX)
            if doomed.exists():
                shutil.rmtree(doomed, onerror=_unless_gone)
            try:
                path = path.rename(doomed)
            except FileNotFoundError:  # another thread was faster
                return
        shutil.rmtree(path, onerror=_unless_gone)
    else:
        path.unlink(missing_ok=True)


def _unless_gone(_: object, __: str, raised: tuple[type[BaseException], BaseException, TracebackType]) -> None:
    """Let two threads remove the same folder."""
    if not isinstance(raised[1], FileNotFoundError):
        raise raised[1]


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_trouble(error: BaseException) -> bool:
    """Tell whether an error is the disk's (full, failing, read-only) and not that of what was being written."""
    if isinstance(error, OSError):
        return error.errno in _DISK_ERRNOS
    if isinstance(error, sqlite3.OperationalError):
        # The primary code is the low byte of an extended one.
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK_SQLITE_CODES
    return False


def _cloned(source: int, target: Path) -> bool:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        fcntl.ioctl(descriptor, _FICLONE, source)
    except OSError:
        with suppress(OSError):
            target.unlink()
        return False
    finally:
        os.close(descriptor)
    return True
