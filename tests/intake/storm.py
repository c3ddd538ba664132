"""Many drops in every way a file can come to be in a folder, and what must be true of them at the end."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from tests.faults.evidence import read_ledger
from tests.support.daemon import wait_for
from tests.support.dropping import read_receipt, receipts_in
from tests.support.wire import SINGLE, Files, fine_tuned, sharded, single

WRITERS = 12


@dataclass(frozen=True)
class Places:
    """Where drops come from and go."""

    inbox: Path
    root: Path
    """Below the allowed root, on the same device."""
    device: Path
    """On another device."""


@dataclass(frozen=True)
class Counts:
    """What became of a storm."""

    drops: int
    accepted: int
    premature: int
    """Submissions of other bytes than were dropped in the end, and drops that were refused."""
    missed: int
    folded_twice: int
    kinds: Mapping[str, int]
    seconds: float

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        return (
            f"{self.drops} drops ({kinds}): {self.accepted} accepted, {self.premature} premature, "
            f"{self.missed} missed, {self.folded_twice} folded twice, {self.seconds:.0f} s"
        )


def _slowly(path: Path, content: bytes, draw: random.Random, longest: float) -> None:
    pieces = draw.randint(2, 6)
    with path.open("wb", buffering=0) as file:
        for number in range(pieces):
            start, end = (len(content) * at // pieces for at in (number, number + 1))
            file.write(content[start:end])
            time.sleep(draw.uniform(0, longest))


def _a_slow_file(name: str, files: Files, to: Places, draw: random.Random) -> None:
    _slowly(to.inbox / name, files[SINGLE], draw, 0.6)


def _a_reserved_file(name: str, files: Files, to: Places, draw: random.Random) -> None:
    with (to.inbox / name).open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, len(files[SINGLE]))
        time.sleep(draw.uniform(0, 0.6))
        file.write(files[SINGLE])


def _a_renamed_file(name: str, files: Files, to: Places, draw: random.Random) -> None:
    _slowly(part := to.inbox / f"{name}.part", files[SINGLE], draw, 0.1)
    part.rename(to.inbox / name)


def _a_symbolic_link(name: str, files: Files, to: Places, draw: random.Random) -> None:
    real, link = to.root / name, to.inbox / name
    if draw.random() < 0.5:
        link.symlink_to(real)
        _slowly(real, files[SINGLE], draw, 0.15)
    else:
        _slowly(real, files[SINGLE], draw, 0)
        link.symlink_to(real)


def _a_hard_link(name: str, files: Files, to: Places, draw: random.Random) -> None:
    (real := to.root / name).write_bytes(files[SINGLE])
    os.link(real, to.inbox / name)


def _a_file_from_another_device(name: str, files: Files, to: Places, draw: random.Random) -> None:
    (real := to.device / name).write_bytes(files[SINGLE])
    shutil.move(real, to.inbox / name)


def _a_folder_of_shards(name: str, files: Files, to: Places, draw: random.Random) -> None:
    (folder := to.inbox / name).mkdir()
    for file in draw.sample(sorted(files), len(files)):
        _slowly(folder / file, files[file], draw, 0.1)


def _a_folder_renamed(name: str, files: Files, to: Places, draw: random.Random) -> None:
    (folder := to.inbox / f".{name}").mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    folder.rename(to.inbox / name)


def _a_folder_of_hard_links(name: str, files: Files, to: Places, draw: random.Random) -> None:
    (real := to.root / name).mkdir()
    for file, content in files.items():
        (real / file).write_bytes(content)
    shutil.copytree(real, to.inbox / name, copy_function=os.link)


KINDS: Mapping[str, tuple[Callable[[str, Files, Places, random.Random], None], bool]] = {
    "slow writers": (_a_slow_file, False),
    "with room reserved": (_a_reserved_file, False),
    "renamed in": (_a_renamed_file, False),
    "symbolic links": (_a_symbolic_link, False),
    "hard links": (_a_hard_link, False),
    "from another device": (_a_file_from_another_device, False),
    "folders of shards": (_a_folder_of_shards, True),
    "folders renamed in": (_a_folder_renamed, True),
    "folders of hard links": (_a_folder_of_hard_links, True),
}
"""How, and whether it is a folder."""


class Storm:
    """Drops, with what their content is."""

    def __init__(self, tensors: Mapping[str, Tensor], places: Places, seed: int, drops: int):
        self.places = places
        self.drops = drops
        self.contents: dict[str, dict[str, str]] = {}
        """Name of the drop -> file name -> SHA-256."""
        self.kinds: Counter[str] = Counter()
        self._tensors = tensors
        self._draw = random.Random(seed)
        self._started = time.monotonic()

    def blow(self, start: int = 0, end: int | None = None) -> None:
        """Drop everything, or what has these numbers, several at a time."""
        with ThreadPoolExecutor(WRITERS) as pool:
            for result in [pool.submit(self._drop, n) for n in range(start, self.drops if end is None else end)]:
                result.result()

    def _drop(self, number: int) -> None:
        kind, (write, is_folder) = list(KINDS.items())[number % len(KINDS)]
        tensors = fine_tuned(self._tensors)
        files = sharded(tensors) if is_folder else single(tensors)
        name = f"drop-{number}" if is_folder else f"drop-{number}.safetensors"
        self.contents[name] = {file: sha256(content).hexdigest() for file, content in files.items()}
        write(name, files, self.places, random.Random(self._draw.random()))
        self.kinds[kind] += 1

    def wait(self, seconds: float) -> None:
        """Wait until every drop is filed, or the time is over: what is missed shows in the counts."""
        accepted, rejected = self.places.inbox / "accepted", self.places.inbox / "rejected"
        try:
            wait_for(lambda: _files(accepted) + _files(rejected) >= 2 * self.drops, "every drop to be filed", seconds)
        except AssertionError as error:
            print(error)

    def counts(self, state: Path) -> Counts:
        """Hold what was dropped against the receipts and the ledger."""
        ledger = read_ledger(state)
        by_id = {submission.id: submission for submission in ledger.submissions}
        receipts = [read_receipt(path) for path in receipts_in(self.places.inbox / "accepted")]
        accepted = Counter(receipt["drop"] for receipt in receipts)
        wrong = 0
        for receipt in receipts:
            submission = by_id[receipt["submission"]]
            digests = {name: digest.sha256 for name, digest in submission.files.items()}
            wrong += digests != self.contents[receipt["drop"]] or submission.version != receipt["version"]
        versions = Counter(by_id[version.submission_id].content_digest for version in ledger.versions)
        dropped = {frozenset(content.items()) for content in self.contents.values()}
        strange = [
            submission
            for submission in ledger.submissions
            if frozenset((name, digest.sha256) for name, digest in submission.files.items()) not in dropped
        ]
        return Counts(
            drops=self.drops,
            accepted=len(receipts),
            premature=wrong + len(strange) + len(receipts_in(self.places.inbox / "rejected")),
            missed=len(self.contents.keys() - accepted.keys()),
            folded_twice=sum(count - 1 for count in versions.values()) + sum(count - 1 for count in accepted.values()),
            kinds=self.kinds,
            seconds=time.monotonic() - self._started,
        )


def overflow(pid: int, inbox: Path) -> None:
    """Make more events than are kept for a process that does not read them."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        for number in range(limit // 2 + 1000):  # each gives two events or more
            (path := inbox / f".junk-{number % 100}").touch()
            path.unlink()
    finally:
        os.kill(pid, signal.SIGCONT)


def _files(folder: Path) -> int:
    return sum(1 for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else 0
