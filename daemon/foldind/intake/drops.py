"""What an entry of the watched folder is at present: growing, ready, or no checkpoint.

`observe` takes its stamps and opens nothing; `judge` reads headers, and is asked once the stamps have come to rest.
"""

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

from foldind.checkpoints.adapterconfig import read_adapter_config
from foldind.checkpoints.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    INDEX,
    SINGLE,
    STATISTICS,
    Limits,
    check_file_names,
    choose_files,
    read_index,
)
from foldind.checkpoints.header import read_open_header
from foldind.checkpoints.statistics import without_statistics
from foldind.errors import CheckpointIncomplete, CheckpointRefused, InvalidRequest
from foldind.intake.admission import RESERVED_REQUESTS
from foldind.intake.copies import Source, Stamp, lies_under, look_at, open_source

ACCEPTED = "accepted"
REJECTED = "rejected"
MAX_ENTRIES = 20_000

_TARGET = "/"
_UNFINISHED = (".tmp", ".part", ".partial", ".crdownload", "~")
_WEIGHTS = ".safetensors"
_DESCRIPTIONS = (INDEX, ADAPTER_CONFIG)


@dataclass(frozen=True)
class Sight:
    """A drop as it was observed. Equal sights: nothing has changed in between."""

    name: str
    is_folder: bool
    """Also if it is a link to one."""
    links: bool
    """Whether it is or holds a symbolic link."""
    stamps: tuple[tuple[str, Stamp | None], ...]
    """Of the drop itself (""), of the files in it that matter, and where links lead (name and "/"; None: nowhere)."""

    @property
    def modified(self) -> int:
        """When it was last modified, in nanoseconds."""
        return max(stamp.modified for _, stamp in self.stamps if stamp)

    @property
    def request_id(self) -> str:
        """What names this drop, as it is, in the ledger."""
        content = repr((os.fsencode(self.name), [(os.fsencode(name), stamp) for name, stamp in self.stamps]))
        return RESERVED_REQUESTS + sha256(content.encode()).hexdigest()

    def is_still(self, before: "Sight") -> bool:
        """Tell whether this is what `before` was, moved: that changes its name, and when its status was changed."""
        return self._kept() == before._kept()

    def is_copy_of(self, original: "Sight") -> bool:
        """Tell whether this may be a copy: the same files, of the same lengths."""
        return self._lengths() == original._lengths()

    def _lengths(self) -> list[object]:
        return [(name, stamp.size) for name, stamp in self.stamps if stamp and (name or not self.is_folder)]

    def _kept(self) -> list[object]:
        (_, own), *inner = self.stamps
        assert own is not None  # only what a link leads to can be missing
        if inner and inner[0][0] == _TARGET:  # moving a link may change what it leads to
            return [own.inode]
        files = [(name, stamp) for name, stamp in inner if not name.endswith(_TARGET)]
        return [own.inode, *(own[1:3] if not self.is_folder else ()), *((n, s and s[:3]) for n, s in files)]


@dataclass(frozen=True)
class Ready:
    """A whole checkpoint."""

    sources: Mapping[str, Source]
    """By the names that they are handed in under."""


@dataclass(frozen=True)
class Growing:
    """It may become a checkpoint yet."""

    reason: str
    """What is missing."""


@dataclass(frozen=True)
class Refused:
    """It will never be a checkpoint."""

    reason: str


Verdict = Ready | Growing | Refused


def is_ignored(name: str) -> bool:
    """Tell whether an entry is no drop: unfinished by its name, hidden, or one of our own."""
    return name in (ACCEPTED, REJECTED) or name.startswith(".") or name.endswith(_UNFINISHED)


def observe(path: Path) -> Sight:
    """Look at a drop without opening any file. Raises OSError: it is not there."""
    status = path.lstat()
    stamps: list[tuple[str, Stamp | None]] = [("", Stamp.of(status))]
    links = stat.S_ISLNK(status.st_mode)
    if links:
        stamps.append((_TARGET, _stamp(path)))
    if is_folder := _is_folder(path):
        with suppress(PermissionError):  # the verdict says so
            for entry in _entries(path):
                if entry.name.endswith(_WEIGHTS) or entry.name in _DESCRIPTIONS:
                    stamps.append((entry.name, Stamp.of(entry.stat(follow_symlinks=False))))
                    if entry.is_symlink():
                        links = True
                        stamps.append((entry.name + _TARGET, _stamp(path / entry.name)))
    return Sight(path.name, is_folder, links, tuple(stamps))


def shown(name: str) -> str:
    """Return the name of a drop as text that can be shown and stored anywhere."""
    return "".join(character if character.isprintable() else "?" for character in name)


def judge(path: Path, sight: Sight, roots: Sequence[Path], limits: Limits, *, statistics: bool = False) -> Verdict:
    """Say what a drop is.

    Args:
      path: where it lies.
      sight: as it was observed.
      roots: folders that links may lead into.
      limits: what is larger is refused unread.
      statistics: whether it has to have statistics beside it.

    Raises:
      SourceChanged: it is not what was observed any more.
      OSError: EIO, EMFILE and the like: nothing that the drop could help.
    """
    try:
        if sight.is_folder:
            return Ready(_folder(path, sight, roots, limits, statistics))
        found = _file(path, roots, limits)
        if statistics:
            raise without_statistics()
        return Ready(found)
    except CheckpointIncomplete as error:
        return Growing(error.reason)
    except (CheckpointRefused, InvalidRequest) as error:
        return Refused(str(error))
    except PermissionError as error:
        name = Path(error.filename or path).name
        return Refused(f"the daemon may not read {name!r}; let its user read it, and drop it again")


def _file(path: Path, roots: Sequence[Path], limits: Limits) -> dict[str, Source]:
    source = _source(path, roots)
    if not path.name.endswith(_WEIGHTS):
        check_file_names([path.name])
    _check_whole(path, source, roots, limits)
    return {SINGLE: source}


def _folder(path: Path, sight: Sight, roots: Sequence[Path], limits: Limits, statistics: bool) -> dict[str, Source]:
    _resolve(path, roots)
    names = [name for name, _ in sight.stamps if name and not name.endswith(_TARGET)]
    if len(names) + 1 >= MAX_ENTRIES:
        raise CheckpointRefused(f"{path.name!r} holds {MAX_ENTRIES} files or more", "drop a folder of one checkpoint")
    chosen = choose_files(names, statistics=statistics)
    if not chosen:
        if not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, "may not be read", str(path))
        raise CheckpointIncomplete(
            f"{path.name!r} holds neither {SINGLE} nor {INDEX}", "save the model with save_pretrained(...)"
        )
    if chosen[0] == INDEX:
        _check_shards(path, names, roots, limits)
    if chosen[0] == ADAPTER_CONFIG:
        _check_adapter(path, names, roots)
    check_file_names(chosen)
    if statistics and STATISTICS not in chosen:
        raise CheckpointIncomplete((lacking := without_statistics()).reason, lacking.hint)
    sources = {name: _source(path / name, roots) for name in chosen}
    for name in chosen:
        if name.endswith(_WEIGHTS):
            _check_whole(path / name, sources[name], roots, limits)
    return sources


def _check_shards(path: Path, present: Sequence[str], roots: Sequence[Path], limits: Limits) -> None:
    with open_source(_source(path / INDEX, roots), roots) as file:
        shards = sorted(set(read_index(file, limits.index_bytes).values()))
    if missing := sorted(set(shards) - set(present)):
        raise CheckpointIncomplete(
            f"{INDEX} names {missing[0]}, which is missing ({len(missing)} of {len(shards)} shards are)",
            "drop the folder with all its shards",
        )


def _check_adapter(path: Path, present: Sequence[str], roots: Sequence[Path]) -> None:
    with open_source(_source(path / ADAPTER_CONFIG, roots), roots) as file:
        read_adapter_config(file)
    if ADAPTER not in present:
        raise CheckpointIncomplete(
            f"{path.name!r} holds {ADAPTER_CONFIG} without {ADAPTER}", "drop the folder with both"
        )


def _check_whole(path: Path, source: Source, roots: Sequence[Path], limits: Limits) -> None:
    with open_source(source, roots) as file:
        read_open_header(file, Path(shown(path.name)), limits.header_bytes)


def _source(path: Path, roots: Sequence[Path]) -> Source:
    real = _resolve(path, roots)
    try:
        return look_at(real)
    except InvalidRequest as error:
        raise CheckpointRefused(f"{path.name!r} is not a regular file", "drop a file, or a folder of files") from error


def _resolve(path: Path, roots: Sequence[Path]) -> Path:
    real = Path(os.path.realpath(path))
    if not lies_under(real, roots):
        raise CheckpointRefused(
            f"{path.name!r} is a link that leads out of the folders that the daemon may read",
            "drop a copy, or have the operator add the folder to `allowed_roots`",
        )
    try:
        real.lstat()
        loop = real.is_symlink()
    except (FileNotFoundError, NotADirectoryError):
        loop = True
    if loop:
        raise CheckpointIncomplete(
            f"{path.name!r} is a link that leads nowhere", "drop a copy of what it should lead to"
        )
    return real


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _entries(path: Path) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted(islice(entries, MAX_ENTRIES), key=lambda entry: entry.name)


def _stamp(path: Path) -> Stamp | None:
    try:
        return Stamp.of(path.stat())
    except OSError:  # it leads nowhere, or round in a circle
        return None
