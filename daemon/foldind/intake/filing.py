"""Where a drop goes when it is settled: into accepted/ or rejected/, beside a receipt.

The receipt is written first: it names the drop as it was (its request id), so whoever finds both, the drop in its place
and its receipt, knows that only the move is left to do. Nothing that lies there already is ever written over.
"""

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from foldind.errors import SourceChanged
from foldind.intake.copies import look_at, open_source
from foldind.intake.drops import ACCEPTED, REJECTED, Sight, observe
from foldind.state.durable import TEMPORARY_SUFFIX, copy_open_file, make_folder, move, remove, sync, write_file

MAX_NAME_BYTES = 200
"""Of what is filed; leaves room for the number of a name that is taken, and for the receipt's."""

_RECEIPT = ".json"
_OURS = ".foldin-"
_MAX_RECEIPT_BYTES = 64 * 1024


@dataclass(frozen=True)
class Receipt:
    """What became of a drop."""

    drop: str
    """The name under which it was dropped."""
    request_id: str
    submission: str | None
    """The id of the submission; None: it was refused before there was one."""
    state: str
    """MERGED, REJECTED, QUARANTINED or WITHDRAWN."""
    version: int | None
    """The version that first contains it."""
    reason: str
    note: str
    received_at: str
    settled_at: str
    """ISO 8601, UTC."""
    common_rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Tensors of which only the rows were folded that the base has too: how many, and of how many in each."""

    @property
    def accepted(self) -> bool:
        """Whether the merged model contains it."""
        return self.state == "MERGED"


def iso_time(seconds: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def real_path(path: Path) -> Path:
    """Return where a path really leads, without links."""
    return Path(os.path.realpath(path))


class Filing:
    """Files what was dropped into one folder; blocks on the disk."""

    def __init__(self, inbox: Path):
        self._inbox = inbox
        self._places = {name: real_path(inbox / name) for name in (ACCEPTED, REJECTED)}

    def prepare(self) -> None:
        """Make the two folders, and remove what an interruption left. Raises OSError."""
        for place in (self._inbox / ACCEPTED, self._inbox / REJECTED):
            make_folder(place)
            for left_over in (
                *place.glob(f"{_OURS}*{TEMPORARY_SUFFIX}"),
                *place.glob(f".*{_RECEIPT}{TEMPORARY_SUFFIX}"),
            ):
                remove(left_over)
        for left_over in self._inbox.glob(f"{_OURS}*{TEMPORARY_SUFFIX}"):
            remove(left_over)

    def file(self, sight: Sight, receipt: Receipt) -> Path:
        """Write the receipt of a drop, and move the drop beside it.

        Args:
          sight: the drop as it was judged.
          receipt: what became of it.

        Returns:
          Where it lies now.

        Raises:
          SourceChanged: something else lies in its place, and stays there.
          OSError: the disk fails, or what was dropped cannot be moved.
        """
        place = self._place(ACCEPTED if receipt.accepted else REJECTED)
        target = _target(place, receipt, sight)
        source = self._inbox / sight.name
        self._check_same(source, sight)
        if not _is_of(target, receipt.request_id):
            write_file(_receipt_path(target), json.dumps(asdict(receipt), indent=1).encode() + b"\n")
        if os.path.lexists(target):  # copied from another device before an interruption
            self._discard(source, sight)
            return target
        try:
            move(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy_over(source, sight, target)
        else:
            self._check_moved(target, source, sight)
        return target

    def _place(self, name: str) -> Path:
        # A link to another device may be there from the start; one that is put there later could lead anywhere.
        make_folder(place := self._inbox / name)
        if real_path(place) not in (self._places[name], real_path(self._inbox) / name):
            raise PermissionError(errno.EPERM, "leads somewhere else than when the daemon started", str(place))
        return place

    def _copy_over(self, source: Path, sight: Sight, target: Path) -> None:
        temporary = target.with_name(f"{_OURS}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
        try:
            _copy(source, temporary)
            self._check_same(source, sight)
            move(temporary, target)
        except BaseException:
            with suppress(OSError):
                remove(temporary)
            raise
        self._discard(source, sight)

    def _discard(self, source: Path, sight: Sight) -> None:
        doomed = self._inbox / f"{_OURS}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        move(source, doomed)
        self._check_moved(doomed, source, sight)
        remove(doomed)

    def _check_same(self, path: Path, sight: Sight) -> None:
        try:
            if observe(path) == sight:
                return
        except FileNotFoundError:
            pass
        raise SourceChanged(f"{sight.name!r} changed before it could be filed")

    def _check_moved(self, path: Path, back: Path, sight: Sight) -> None:
        # Another may have been put in its place in the last moment: that one has not been handed in.
        if not observe(path).is_still(sight):
            if not os.path.lexists(back):
                move(path, back)
            raise SourceChanged(f"{sight.name!r} was replaced while it was being filed")


def _target(place: Path, receipt: Receipt, sight: Sight) -> Path:
    for name in _names(receipt.drop):
        target = place / name
        if _is_of(target, receipt.request_id) and (not os.path.lexists(target) or observe(target).is_copy_of(sight)):
            return target
        if not os.path.lexists(target) and not os.path.lexists(_receipt_path(target)):
            return target
    raise AssertionError  # there is no end to the names


def _names(name: str) -> Iterator[str]:
    encoded = os.fsencode(name)
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(os.fsencode(suffix)) > 20:
        stem, dot, suffix = name, "", ""
    if len(encoded) > MAX_NAME_BYTES:
        digest = sha256(encoded).hexdigest()[:16]
        stem = os.fsencode(stem)[: MAX_NAME_BYTES - 40].decode(errors="ignore") + f"-{digest}"
    yield f"{stem}{dot}{suffix}"
    for number in count(2):
        yield f"{stem}-{number}{dot}{suffix}"


def _receipt_path(target: Path) -> Path:
    return target.with_name(target.name + _RECEIPT)


def _is_of(target: Path, request_id: str) -> bool:
    path = _receipt_path(target)
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as file:
            found: Any = json.loads(file.read(_MAX_RECEIPT_BYTES))
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("request_id") == request_id


def _copy(source: Path, target: Path) -> None:
    """Copy a file, link or folder durably but for the entry of the target itself."""
    status = source.lstat()
    if stat.S_ISLNK(status.st_mode):
        target.symlink_to(source.readlink())
    elif stat.S_ISDIR(status.st_mode):
        target.mkdir()
        for entry in source.iterdir():
            _copy(entry, target / entry.name)
    elif stat.S_ISREG(status.st_mode):
        with open_source(look_at(source), (source.parent,)) as file:
            copy_open_file(file, target)
    else:
        os.mknod(target, status.st_mode, status.st_rdev)
    with suppress(OSError):
        shutil.copystat(source, target, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        sync(target)
