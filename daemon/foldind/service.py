"""The loop that merges, and the only writer of versions.

The order of a merge (its steps are in attempt.py), and what a crash after each leaves:
  1. the submission is MERGING                   -> it is taken up again, first
  2. the worker writes under temporary names     -> they are removed, and it is folded again, to the same bytes
  3. both folders are sealed by rename           -> unrecorded, they are removed, likewise
  4. one transaction records the version         -> it is merged; nothing is repeated
  5. symlink, retention, the submission's bytes  -> repeated at start
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from foldind.attempt import Attempts, log_merged
from foldind.changes import Changes
from foldind.config import Configuration, ServeSettings
from foldind.errors import CheckpointRefused, ShuttingDown, StateError, WrongState
from foldind.housekeeping import keep_house, undo_newest
from foldind.logs import about
from foldind.metrics import MergeStages, Metrics
from foldind.pause import Pause
from foldind.preparation import Preparation
from foldind.pulse import Pulse
from foldind.republication import Republication
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger
from foldind.state.records import Submission, SubmissionState, Version
from foldind.state.verification import verify_foundation
from foldind.state.versions import Versions
from foldind.worker.messages import Progress
from foldind.worker.supervisor import Supervisor, WorkerDied

log = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 30
ANNOUNCE_SECONDS = 0.1
ROLLBACK_WAITS_SECONDS = 1


class MergeService:
    """Takes submissions from the queue, one at a time, and makes a version of each."""

    def __init__(
        self,
        folder: StateFolder,
        configuration: Configuration,
        settings: ServeSettings,
        ledger: Ledger,
        versions: Versions,
        supervisor: Supervisor,
        preparation: Preparation,
        republication: Republication,
        changes: Changes,
        metrics: Metrics,
    ):
        self._folder = folder
        self._configuration = configuration
        self._attempts = Attempts(folder, configuration, settings, versions)
        self._settings = settings
        self._ledger = ledger
        self._versions = versions
        self._supervisor = supervisor
        self._preparation = preparation
        self._republication = republication
        self._changes = changes
        self._metrics = metrics
        self._pulse = Pulse()
        self._with_worker = False
        self._preparing = False
        self._head = asyncio.Lock()  # held while a merge or a rollback is moving the head
        self._stopping = asyncio.Event()
        self.progress: dict[str, Progress] = {}
        """Id of the submission being folded -> how far it is."""
        self.pause = Pause()
        self._announced = 0.0

    async def run(self) -> None:
        """Merge until `stop`.

        Raises:
          WorkerDied: the worker does not even start.
        """
        for attempt in range(self._settings.max_attempts):
            try:
                with self._waiting_for_worker():
                    await self._supervisor.start()
                break
            except WorkerDied:
                if self._stopping.is_set():
                    break
                if attempt + 1 == self._settings.max_attempts:
                    raise
                log.exception("the worker did not start; trying again")
        self._changes.announce()
        verified = False
        while not self._stopping.is_set():
            seen = self._changes.count
            self._pulse.beat()
            try:
                if not verified:
                    verified = await asyncio.to_thread(self._verify)
                async with self._head:
                    if await asyncio.to_thread(keep_house, self._folder, self._ledger, self._versions, self._settings):
                        self._changes.announce()  # to who watches it
                    self._pulse.beat()
                    merged = await self._republish() or await self._merge_next()
                if self.pause.end():
                    self._changes.announce()
            except Exception as error:
                if self.pause.begin(error):
                    self._changes.announce()
                self._pulse.beat(self._settings.retry_disk_every)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._settings.retry_disk_every)
                continue
            if not merged and not await self._prepare():
                self._pulse.beat(HOUSEKEEPING_SECONDS)
                await self._changes.wait(seen, HOUSEKEEPING_SECONDS)

    def _verify(self) -> bool:
        """Check what the next merge builds on, and tell whether that came to its end."""

        def before_block() -> None:
            if self._stopping.is_set():
                raise ShuttingDown("the daemon was stopped")
            self._pulse.beat()

        with suppress(ShuttingDown):
            verify_foundation(self._folder, self._configuration, self._versions.head(), before_block)
            return True
        return False

    async def stop(self, running: "asyncio.Task[None]") -> None:
        """End `run`: a running merge gets the grace to finish, then it goes back to the queue."""
        self._stopping.set()
        self._changes.announce()
        _, late = await asyncio.wait([running], timeout=0 if self._preparing else self._settings.shutdown_grace)
        await self._supervisor.stop()
        if late:
            await running

    @property
    def unready_reason(self) -> str:
        """Why no work should be sent here at present, a sentence; empty: it may be."""
        if self._stopping.is_set():
            return "the daemon is shutting down; send work again when it is back"
        if self._supervisor.ready is None:
            return "the daemon is starting; it is ready in a few seconds"
        return self.pause.reason

    @property
    def status(self) -> str:
        """What the loop does, a sentence."""
        for submission_id, progress in self.progress.items():
            return f"submission {submission_id}: {progress.stage} tensor {progress.done} of {progress.total}"
        return self.unready_reason or "waiting for submissions"

    @property
    def gets_on(self) -> bool:
        """Whether the loop is not stuck: it shows itself in time, or waits for a worker that lives."""
        return self._pulse.beats or (self._with_worker and self._supervisor.is_running)

    async def rollback(self, number: int) -> tuple[Version, Version | None]:
        """Undo the newest version.

        Args:
          number: of the version to undo, which must be the newest; 0 for whichever that is.

        Returns:
          The version undone, and the newest one now.

        Raises:
          WrongState: that version cannot be undone (any more).
        """
        try:
            async with asyncio.timeout(ROLLBACK_WAITS_SECONDS):  # for a merge that is as good as done
                await self._head.acquire()
        except TimeoutError:
            raise WrongState(
                "a merge is running, and the state before the newest version is no longer kept",
                "wait until it is done; then that newer version can be undone",
            ) from None
        try:
            undone, newest = await asyncio.to_thread(undo_newest, number, self._folder, self._versions)
        finally:
            self._head.release()
        self._changes.announce()
        return undone, newest

    async def _merge_next(self) -> bool:
        submission = await asyncio.to_thread(self._ledger.take_next)
        if submission is None:
            return False
        submission_log = about(log, submission.id)
        self._changes.announce()
        if submission.state is SubmissionState.REJECTED:
            submission_log.warning("rejected: %s", submission.reason)
            return True
        try:
            await self._merge(submission)
        except Exception as error:
            if isinstance(error, WorkerDied) and self._stopping.is_set():
                await asyncio.to_thread(self._ledger.requeue, submission.id, "the daemon was stopped")
                submission_log.info("back in the queue, the daemon was stopped")
                return False
            if isinstance(error, (OSError, sqlite3.Error, StateError)):  # no fault of the submission
                with suppress(OSError, sqlite3.Error):  # if not even that can be recorded, it stays MERGING
                    await asyncio.to_thread(self._ledger.requeue, submission.id, str(error))
                raise
            submission_log.exception("an attempt failed")
            max_attempts = self._settings.max_attempts
            counted = await asyncio.to_thread(self._ledger.count_attempt, submission.id, str(error), max_attempts)
            if counted.state is SubmissionState.QUARANTINED:
                submission_log.error("quarantined: %s", counted.reason)
            elif counted.state is SubmissionState.QUEUED:
                submission_log.warning("back in the queue for attempt %d of %d", counted.attempts + 1, max_attempts)
        finally:
            self.progress.pop(submission.id, None)
            self._changes.announce()
        return True

    async def _republish(self) -> bool:
        with self._waiting_for_worker():
            done = await self._republication.step()
        if done:
            self._changes.announce()
        return done

    async def _prepare(self) -> bool:
        if self._stopping.is_set():
            return False
        self._preparing = True
        try:
            with self._waiting_for_worker():
                return await self._preparation.step()
        finally:
            self._preparing = False

    async def _merge(self, submission: Submission) -> None:
        # One that an interruption left MERGING did not wait for its turn.
        queued = submission.state is SubmissionState.QUEUED
        stages = MergeStages(waited=time.time() - submission.updated_at if queued else 0)
        attempt = await asyncio.to_thread(self._attempts.begin, submission)
        submission_log = about(log, submission.id)
        name = f"{submission.name!r} " if submission.name else ""
        submission_log.info("folding %sinto v%d", name, attempt.number)
        request = self._attempts.request(attempt)

        def report(progress: Progress) -> None:
            if progress.stage != "folding":
                stages.begin("publish")
            self._report(submission.id, progress)

        try:
            with self._waiting_for_worker():
                result = await self._supervisor.fold(request, report)
        except CheckpointRefused as error:
            await asyncio.to_thread(self._ledger.reject, submission.id, str(error))
            submission_log.warning("rejected: %s", error)
            return
        stages.begin("commit")
        await asyncio.to_thread(self._attempts.commit, attempt, result)
        self._metrics.observe_merge(stages)
        log_merged(attempt, result)

    @contextmanager
    def _waiting_for_worker(self) -> Iterator[None]:
        self._with_worker = True
        try:
            yield
        finally:
            self._with_worker = False
            self._pulse.beat()

    def _report(self, submission_id: str, progress: Progress) -> None:
        before = self.progress.get(submission_id)
        self.progress[submission_id] = progress
        now = time.monotonic()
        if now - self._announced >= ANNOUNCE_SECONDS:
            self._announced = now
            self._changes.announce()
        tenths = 10 * progress.done // progress.total
        if before is None or before.stage != progress.stage or tenths > 10 * before.done // before.total:
            about(log, submission_id).info("%s tensor %d of %d", progress.stage, progress.done, progress.total)
