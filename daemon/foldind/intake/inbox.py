"""The watched folder.

What a drop goes through, and what a crash after each step leaves:
  1. it came to rest, and is whole        -> it is seen again
  2. it is copied, sealed and QUEUED      -> its request id, made of what it is, finds its submission
  3. its submission is settled            -> likewise
  4. its receipt is written               -> the receipt names that request id; only the move is left
  5. it is moved                          -> nothing is left to do
One look does for every drop whatever it is time for, and nothing that one drop does stops another. Events only make a
look come sooner.
"""

import asyncio
import errno
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Counter

from foldind.changes import Changes
from foldind.checkpoints.checkpoint import Limits
from foldind.config import ServeSettings
from foldind.errors import CheckpointRefused, FoldinError, InvalidRequest, ShuttingDown, SourceChanged, StateError
from foldind.intake.copies import Copies
from foldind.intake.drops import ACCEPTED, REJECTED, Growing, Ready, Refused, Sight, Verdict, is_ignored, judge, observe
from foldind.intake.filing import real_path
from foldind.intake.hints import Hints
from foldind.intake.reception import Reception
from foldind.logs import about
from foldind.state.durable import is_disk_trouble
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger

log = logging.getLogger(__name__)

LEAST_SECONDS = 0.1
"""Between two looks."""
LOOK_SECONDS = 2
"""What is settled meanwhile does not wait longer for its receipt, but for the copy that is being made."""


@dataclass
class _Drop:
    """An entry of the folder, since it last changed."""

    sight: Sight
    since: float
    not_before: float
    """Monotonic seconds."""
    seen_at: float
    """Seconds since the epoch."""
    verdict: Verdict | None = None
    awaited: str = ""
    """Id of the submission that decides what becomes of it."""
    told: str = ""
    """What was last logged of it, so that it is logged once."""

    @property
    def turn(self) -> tuple[bool, bool, int, str]:
        """Its place among those attended to at one look.

        What is settled is filed first: links before what they may lead to, which would leave them hanging. The others
        are handed in first come, first served.
        """
        filed_later = bool(self.awaited) and not self.sight.links
        return (not self.awaited, filed_later, self.sight.modified, self.sight.name)


class Inbox:
    """Hands in what is dropped into one folder."""

    def __init__(
        self,
        folder: StateFolder,
        ledger: Ledger,
        copies: Copies,
        limits: Limits,
        settings: ServeSettings,
        changes: Changes,
        filed: Mapping[str, Counter],
    ):
        assert settings.inbox is not None
        self._path = settings.inbox.absolute()
        self._state = folder.root
        self._ledger = ledger
        self._limits = limits
        self._settings = settings
        self._changes = changes
        self._roots: Sequence[Path] = (self._path, *settings.allowed_roots)
        self._statistics = copies.reads_statistics
        self._reception = Reception(self._path, self._roots, ledger, copies, settings.inbox_vocab, filed)
        self._drops: dict[str, _Drop] = {}
        self._stopping = threading.Event()
        self._wake = asyncio.Event()
        self.trouble = ""
        """Why it cannot be looked through at present; empty when it can."""

    def prepare(self) -> None:
        """Make the folder, if it is not there, and the two in it.

        Raises:
          StateError: it cannot be used.
        """
        mine, state = real_path(self._path), real_path(self._state)
        if mine.is_relative_to(state) or state.is_relative_to(mine):
            raise StateError(
                f"the inbox {self._path} and the state folder {self._state} lie in one another",
                "name a folder of its own with --inbox",
            )
        try:
            self._path.mkdir(exist_ok=True)
            self._reception.prepare()
            places = [real_path(self._path / name) for name in (ACCEPTED, REJECTED)]
        except OSError as error:
            raise StateError(
                f"the inbox {self._path} cannot be used ({error})",
                "name a folder with --inbox in which the daemon may write",
            ) from error

        if led := [place for place in places if place.is_relative_to(state)]:
            raise StateError(f"the inbox {self._path} leads into the state folder, to {led[0]}", "remove that link")

    async def run(self) -> None:
        """Look, again and again, until `stop`."""
        loop = asyncio.get_running_loop()

        def hint() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        def announce() -> None:
            loop.call_soon_threadsafe(self._changes.announce)

        hints = Hints(self._path, hint)
        log.info("watching the inbox %s", self._path)
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                seen = self._changes.count
                try:
                    await asyncio.to_thread(hints.follow)
                    pause = await asyncio.to_thread(self._look, announce)
                    self.trouble = ""
                    await self._rest(pause, seen)
                except Exception as error:
                    self._tell(error)
                    await self._rest_from_trouble()
        finally:
            await asyncio.to_thread(hints.stop)

    def stop(self) -> None:
        """End `run`; a copy that is being made is left, and made again after the next start."""
        self._stopping.set()
        self._wake.set()

    def drops(self) -> tuple[int, int]:
        """Return how many drops are there that nothing has become of yet, and how many of them something is wrong with.

        The latter cannot be copied, or filed.
        """
        drops = list(self._drops.values())
        return len(drops), sum(bool(drop.told) for drop in drops)

    async def _rest(self, pause: float, seen: int) -> None:
        """Wait for a hint, for a submission that is awaited, or so many seconds; and long enough in any case."""
        deadline = time.monotonic() + pause
        waiting = asyncio.create_task(self._wake.wait())
        while not waiting.done() and (left := deadline - time.monotonic()) > 0:
            changed = asyncio.create_task(self._changes.wait(seen))
            await asyncio.wait({waiting, changed}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            seen = self._changes.count
            if not self._stopping.is_set() and await asyncio.to_thread(self._is_any_settled):
                break
            await self._breathe()
        waiting.cancel()
        await self._breathe()

    async def _rest_from_trouble(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), self._settings.inbox_poll)
        await self._breathe()

    async def _breathe(self) -> None:
        if not self._stopping.is_set():
            await asyncio.sleep(LEAST_SECONDS)

    def _tell(self, error: Exception) -> None:
        if str(error) != self.trouble:  # say it once
            self.trouble = str(error)
            log.warning(
                "the inbox %s cannot be looked through, and is tried again every few seconds: %s",
                self._path,
                error,
                exc_info=None if isinstance(error, OSError) else error,
            )

    def _is_any_settled(self) -> bool:
        now = time.monotonic()
        awaited = {drop.awaited for drop in self._drops.values() if drop.awaited and drop.not_before <= now}
        return bool(awaited and awaited - self._ledger.unsettled())

    def _look(self, announce: Callable[[], None]) -> float:
        """Do for every drop whatever it is time for, and return how many seconds may pass before the next look."""
        settings = self._settings
        self._see([path.name for path in self._path.iterdir() if not is_ignored(path.name)])
        unsettled = self._ledger.unsettled()
        now = time.monotonic()
        due = [
            drop
            for drop in self._drops.values()
            if now >= max(drop.not_before, drop.since + settings.inbox_settle) and drop.awaited not in unsettled
        ]
        for drop in sorted(due, key=lambda drop: drop.turn):
            if self._stopping.is_set() or time.monotonic() > now + LOOK_SECONDS:
                break
            self._attend(drop, announce)
        if due:
            return 0
        pending = [drop for drop in self._drops.values() if not drop.awaited]
        return min(settings.inbox_poll, settings.inbox_settle) if pending else settings.inbox_poll

    def _see(self, names: list[str]) -> None:
        for gone in self._drops.keys() - set(names):
            drop = self._drops.pop(gone)
            if drop.awaited:
                about(log, drop.awaited).info("%r was taken out of the inbox; it is merged all the same", gone)
        for name in names:
            try:
                sight = observe(self._path / name)
            except OSError as error:  # it, or a file in it, may have gone this moment
                self._drops.pop(name, None)
                log.log(logging.DEBUG if error.errno == errno.ENOENT else logging.WARNING, "%r: %s", name, error)
                continue
            known = self._drops.get(name)
            if known is None or known.sight != sight:
                now = time.monotonic()
                self._drops[name] = _Drop(sight, now, now, time.time())

    def _attend(self, drop: _Drop, announce: Callable[[], None]) -> None:
        try:
            self._advance(drop, announce)
            drop.told = ""
        except SourceChanged as error:
            log.info("%s; waiting until it stops changing", error.reason)
            drop.since, drop.verdict = time.monotonic(), None  # it has to come to rest first
        except ShuttingDown:
            pass
        except Exception as error:
            drop.not_before = time.monotonic() + self._settings.inbox_poll
            if str(error) != drop.told:  # say it once
                drop.told = str(error)
                known = isinstance(error, OSError | FoldinError) or is_disk_trouble(error)
                about(log, drop.awaited).warning(
                    "%r stays in the inbox, and is tried again every few seconds: %s",
                    drop.sight.name,
                    error,
                    exc_info=None if known else error,
                )

    def _advance(self, drop: _Drop, announce: Callable[[], None]) -> None:
        path = self._path / drop.sight.name
        if drop.awaited:
            self._reception.settle(drop.sight)
            del self._drops[drop.sight.name]
            return
        if drop.verdict is None:
            drop.awaited = self._reception.find(drop.sight)
            if drop.awaited:
                return  # filed at a later look, after all that may be links to it were found too
            drop.verdict = judge(path, drop.sight, self._roots, self._limits, statistics=self._statistics)
        quiet = self._settings.inbox_stale
        match drop.verdict:
            case Ready() as ready:
                try:
                    drop.awaited = self._reception.hand_in(drop.sight, ready, self._check_going)
                    announce()
                except (CheckpointRefused, InvalidRequest) as error:
                    drop.verdict = Refused(str(error))
            case Growing() if time.monotonic() < drop.since + quiet:
                drop.not_before = drop.since + quiet
            case Growing(reason):
                drop.verdict = Refused(
                    f"{path.name!r} is incomplete and nothing was added to it for {quiet:g} seconds: {reason}; "
                    "copy it again, whole"
                )
            case Refused(reason):
                self._reception.refuse(drop.sight, reason, drop.seen_at)
                del self._drops[drop.sight.name]

    def _check_going(self) -> None:
        if self._stopping.is_set():
            raise ShuttingDown("the daemon is stopping")
