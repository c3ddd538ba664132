"""Taking what lies on the daemon's own file system: a verified copy of exactly what was looked at, then admission.

Between the look at a file and its copy anyone may put something else in its place. So a file is opened without
following links and without waiting, and what was opened must be what was looked at, before the copy and after it.
"""

import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from prometheus_client import Counter

from foldind.errors import InvalidRequest, SourceChanged
from foldind.intake.admission import Admission, content_digest
from foldind.state.durable import TEMPORARY_SUFFIX, FileDigest, copy_open_file, make_folder, remove, seal
from foldind.state.folder import StateFolder
from foldind.state.ledger import NewSubmission
from foldind.state.records import Submission, SubmissionState


class Stamp(NamedTuple):
    """What changes when a file does."""

    inode: int
    size: int
    """Bytes."""
    modified: int
    changed: int
    """Nanoseconds."""

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return the stamp in a status."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True)
class Source:
    """A regular file as it was looked at."""

    path: Path
    """Where it really lies: without links."""
    stamp: Stamp


def look_at(path: Path) -> Source:
    """Look at a file.

    Args:
      path: without links.

    Raises:
      InvalidRequest: it is no regular file.
      OSError: it is not there, or cannot be reached.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequest(f"{path} is not a regular file", "hand in a file, or a folder of files")
    return Source(path, Stamp.of(status))


def lies_under(path: Path, roots: Sequence[Path]) -> bool:
    """Tell whether a path without links lies under one of the roots, wherever those really lie."""
    return any(path.is_relative_to(os.path.realpath(root)) for root in roots)


@contextmanager
def open_source(source: Source, roots: Sequence[Path]) -> Iterator[BinaryIO]:
    """Open a file for reading, if it still is what it was, and see at the end that it stayed so.

    Args:
      source: the file.
      roots: the folders that it must lie under.

    Raises:
      SourceChanged: it changed, or something else is in its place.
      OSError: it cannot be read.
    """
    changed = SourceChanged(
        f"{str(source.path)!r} changed while it was being read", "hand it in when nothing writes to it"
    )
    try:
        # A pipe in its place would be waited for, a link in its place would be followed.
        descriptor = os.open(source.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise changed from error
    except OSError:
        if source.path.is_symlink():
            raise changed from None
        raise
    status = os.fstat(descriptor)
    opened = Path(f"/proc/self/fd/{descriptor}").readlink()  # a folder on the way may have become a link
    if not stat.S_ISREG(status.st_mode) or Stamp.of(status) != source.stamp or not lies_under(opened, roots):
        os.close(descriptor)
        raise changed
    with os.fdopen(descriptor, "rb") as file:
        yield file
        if Stamp.of(os.fstat(descriptor)) != source.stamp:
            raise changed


class Copies:
    """Makes submissions of files; blocks on the disk.

    Args:
      folder: the state folder.
      admission: what they have to pass.
      received: counts the bytes that were copied.
    """

    def __init__(self, folder: StateFolder, admission: Admission, received: Counter):
        self._folder = folder
        self._admission = admission
        self._received = received

    @property
    def reads_statistics(self) -> bool:
        """Whether statistics beside a checkpoint are to be among the files."""
        return self._admission.reads_statistics

    def take(
        self,
        sources: Mapping[str, Source],
        roots: Sequence[Path],
        description: NewSubmission,
        record: Callable[[NewSubmission], Submission],
        before_block: Callable[[], None] = lambda: None,
    ) -> Submission:
        """Copy files, record the submission, and admit it.

        Args:
          sources: the files, by the names they are handed in under.
          roots: the folders that they must lie under.
          description: of the submission but for its files.
          record: given the description with the digests of what was copied; returns the row that it is to be, or,
            in another state than RECEIVING, the one that it is already.
          before_block: called every few megabytes; may raise, to end it.

        Raises:
          InvalidRequest, CheckpointRefused, OutOfRoom, SourceChanged: nothing was taken.
          OSError: a file cannot be read, or the disk cannot take it.
        """
        sizes = {name: FileDigest(source.stamp.size, "") for name, source in sources.items()}
        self._admission.check_announced(replace(description, files=sizes))
        self._admission.check_room(sizes)
        copy = self._folder.submissions / f"{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        make_folder(copy)
        try:
            digests = {}
            for name, source in sources.items():
                with open_source(source, roots) as file:
                    digests[name] = copy_open_file(file, copy / name, before_block)
                self._received.inc(digests[name].size)
            new = replace(description, files=digests, content_digest=content_digest(digests), uploaded=False)
            submission = record(new)
            if submission.state is not SubmissionState.RECEIVING:
                return submission
            target = self._folder.submission(submission.id)
            remove(target)
            seal(copy, target)
        finally:
            with suppress(OSError):
                remove(copy)
        return self._admission.admit(submission.id, digests)
