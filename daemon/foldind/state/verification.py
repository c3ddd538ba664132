"""Verifying files against the digests that were recorded when they were written: a disk may return other bytes."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from foldind.config import Configuration
from foldind.errors import CheckpointRefused, StateError
from foldind.state.bases import KeptBases, bases_key
from foldind.state.creation import digest_base
from foldind.state.durable import FileDigest, digest_file, remove
from foldind.state.folder import StateFolder
from foldind.state.records import Version

log = logging.getLogger(__name__)

_HINT = "restore the state folder from a backup; `foldind fsck` lists everything that is damaged"


def verify_foundation(
    folder: StateFolder, configuration: Configuration, head: Version | None, before_block: Callable[[], None]
) -> None:
    """Check that the next merge builds on what was written: the base, the accumulated state, and the bases of that.

    Damaged bases are removed, for they can be computed again.

    Args:
      folder: the state folder.
      configuration: of the folder.
      head: the newest version; None before the first merge.
      before_block: called every few megabytes.

    Raises:
      StateError: the base or the state is damaged.
      OSError: they cannot be read.
    """
    try:
        found = digest_base(folder.base, before_block)
    except CheckpointRefused as error:
        raise StateError(f"the base in {folder.base} is damaged ({error.reason})", _HINT) from error
    if found != configuration.base_digest:
        raise StateError(f"the base in {folder.base} is damaged: its digest is not the one in foldin.toml", _HINT)
    if head is None:
        return
    for finding in altered_files(folder.accumulated(head.version), head.state_files, before_block):
        raise StateError(f"the accumulated state is damaged: {finding}", _HINT)
    bases, key = KeptBases(folder.bases), bases_key(head.state_files, configuration.merge)
    for path in bases.damaged(key, before_block):
        log.warning("%s is damaged, and will be computed again", path)
        remove(path)


def altered_files(
    folder: Path, files: Mapping[str, FileDigest], before_block: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Yield a sentence for each file of a folder that is not there, or that is not what was recorded.

    Args:
      folder: the folder.
      files: name -> what was recorded.
      before_block: called every few megabytes.
    """
    for name, digest in files.items():
        try:
            found = digest_file(folder / name, before_block)
        except OSError as error:
            yield f"{folder / name}: {error.strerror}"
            continue
        if found.size != digest.size:
            yield f"{folder / name}: it has {found.size} bytes, and {digest.size} were recorded"
        elif found != digest:
            yield f"{folder / name}: its content (SHA-256) is not what was recorded"
