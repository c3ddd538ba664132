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
import os
import sqlite3
import time
from contextlib import suppress

from foldind.attempt import begin, commit, fold_request
from foldind.changes import Changes
from foldind.config import Configuration, ServeSettings
from foldind.errors import FoldinError, WrongState
from foldind.state.durable import is_disk_trouble
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger
from foldind.state.records import Submission, Version
from foldind.state.recovery import point_latest, prune, remove_dropped
from foldind.state.versions import Versions
from foldind.worker.messages import Failed, FoldResult, Progress, Refused
from foldind.worker.supervisor import Supervisor, WorkerDied

log = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 30
ANNOUNCE_SECONDS = 0.1
ROLLBACK_WAITS_SECONDS = 1


class FoldFailed(FoldinError):
    """A fold ended for no fault of the checkpoint's and no fault of the disk's."""


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
        changes: Changes,
    ):
        self._folder = folder
        self._configuration = configuration
        self._settings = settings
        self._ledger = ledger
        self._versions = versions
        self._supervisor = supervisor
        self._changes = changes
        self._head = asyncio.Lock()  # held while a merge or a rollback is moving the head
        self._stopping = asyncio.Event()
        self.progress: dict[str, Progress] = {}
        """Id of the submission being folded -> how far it is."""
        self.paused_reason = ""
        """Why nothing is merged at present; empty when all is well."""
        self._announced = 0.0

    async def run(self) -> None:
        """Merge until `stop`.

        Raises:
          WorkerDied: the worker does not even start.
        """
        for attempt in range(self._settings.max_attempts):
            try:
                await self._supervisor.start()
                break
            except WorkerDied:
                if self._stopping.is_set():
                    break
                if attempt + 1 == self._settings.max_attempts:
                    raise
                log.exception("the worker did not start; once more")
        while not self._stopping.is_set():
            seen = self._changes.count
            try:
                await asyncio.to_thread(self._keep_house)
                async with self._head:
                    merged = await self._merge_next()
                self._resume()
            except Exception as error:
                self._pause(error)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._settings.retry_disk_every)
                continue
            if not merged:
                await self._changes.wait(seen, HOUSEKEEPING_SECONDS)

    async def stop(self, running: "asyncio.Task[None]") -> None:
        """End `run`: a running merge gets the grace to finish, then it goes back to the queue."""
        self._stopping.set()
        self._changes.announce()
        _, late = await asyncio.wait([running], timeout=self._settings.shutdown_grace)
        await self._supervisor.stop()
        if late:
            await running

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
            undone, newest = await asyncio.to_thread(self._rollback, number)
        finally:
            self._head.release()
        self._changes.announce()
        return undone, newest

    def _rollback(self, number: int) -> tuple[Version, Version | None]:
        head = self._versions.head()
        if head is None:
            raise WrongState("nothing is merged", "there is nothing to undo")
        if number not in (0, head.version):
            raise WrongState(
                f"v{number} is not the newest version, v{head.version} is", "only the newest can be undone"
            )
        if head.parent and not self._folder.accumulated(head.parent).is_dir():
            raise WrongState(
                f"the state of v{head.parent} is no longer kept", "only one version can be undone between two merges"
            )
        self._versions.undo(head)
        point_latest(self._folder, self._versions)
        log.info("rolled back v%d; the newest version is v%d", head.version, head.parent)
        return self._versions.get(head.version), self._versions.head()

    async def _merge_next(self) -> bool:
        submission = await asyncio.to_thread(self._ledger.take_next)
        if submission is None:
            return False
        self._changes.announce()
        try:
            await self._merge(submission)
        except Exception as error:
            if isinstance(error, WorkerDied) and self._stopping.is_set():
                await asyncio.to_thread(self._ledger.requeue, submission.id, "the daemon was stopped")
                return False
            if is_disk_trouble(error):
                with suppress(OSError, sqlite3.OperationalError):  # if not even that can be recorded, it stays MERGING
                    await asyncio.to_thread(self._ledger.requeue, submission.id, str(error))
                raise
            log.exception("submission %s: an attempt failed", submission.id)
            max_attempts = self._settings.max_attempts
            await asyncio.to_thread(self._ledger.count_attempt, submission.id, str(error), max_attempts)
        finally:
            self.progress.pop(submission.id, None)
            self._changes.announce()
        return True

    async def _merge(self, submission: Submission) -> None:
        attempt = await asyncio.to_thread(begin, submission, self._folder, self._versions)
        log.info("submission %s: folding %r into v%d", submission.id, submission.name, attempt.number)
        request = fold_request(attempt, self._folder, self._configuration)
        answer = await self._supervisor.fold(request, lambda progress: self._report(submission.id, progress))
        match answer:
            case Failed(message, 0):
                raise FoldFailed(message)
            case Failed(message, disk_errno):
                raise OSError(disk_errno, f"{os.strerror(disk_errno)} ({message})")
            case Refused(reason):
                await asyncio.to_thread(self._ledger.reject, submission.id, reason)
                log.warning("submission %s: rejected: %s", submission.id, reason)
            case FoldResult():
                await asyncio.to_thread(commit, attempt, answer, self._folder, self._configuration, self._versions)
                log.info(
                    "submission %s: merged in v%d, lambda %.6f, %.2f s, worker peak %d MB",
                    submission.id,
                    attempt.number,
                    answer.lambda_,
                    time.monotonic() - attempt.started,
                    answer.peak_resident_bytes // 2**20,
                )

    def _keep_house(self) -> None:
        point_latest(self._folder, self._versions)
        remove_dropped(self._folder, self._ledger, self._versions)
        for number in prune(self._folder, self._versions, self._settings.keep_snapshots, self._settings.lease):
            log.info("pruned v%d", number)
        expired = time.time() - self._settings.upload_expiry
        for submission in self._ledger.receiving_since_before(expired):
            if self._folder.last_written(submission.id) > expired:
                continue
            with suppress(WrongState):  # it was completed this moment
                self._ledger.withdraw(submission.id, "the upload was not completed in time")
                log.info("submission %s: withdrawn, its upload was not completed in time", submission.id)

    def _report(self, submission_id: str, progress: Progress) -> None:
        before = self.progress.get(submission_id)
        self.progress[submission_id] = progress
        now = time.monotonic()
        if now - self._announced >= ANNOUNCE_SECONDS:
            self._announced = now
            self._changes.announce()
        tenths = 10 * progress.done // progress.total
        if before is None or before.stage != progress.stage or tenths > 10 * before.done // before.total:
            log.info("submission %s: %s tensor %d of %d", submission_id, progress.stage, progress.done, progress.total)

    def _pause(self, error: BaseException) -> None:
        hint = "make room or mend the disk" if is_disk_trouble(error) else "the daemon's log has the details"
        reason = f"paused: {error}; {hint}; the daemon tries again every few seconds"
        if reason != self.paused_reason:
            log.error("%s", reason, exc_info=None if is_disk_trouble(error) else error)
            self.paused_reason = reason
            self._changes.announce()

    def _resume(self) -> None:
        if self.paused_reason:
            log.info("going on")
            self.paused_reason = ""
            self._changes.announce()
