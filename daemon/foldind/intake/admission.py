"""What every submission passes, whichever way it came: limits when it is announced, the check against the base when
its bytes are there, and the row that acknowledges it."""

import json
import logging
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from foldind.checkpoints.checkpoint import STATISTICS, check_file_names, open_checkpoint
from foldind.checkpoints.match import check_against_plan, submission_limits
from foldind.checkpoints.plan import Plan
from foldind.checkpoints.statistics import check_statistics, statistics_plan, without_statistics
from foldind.checkpoints.vocabulary import RowCounts
from foldind.config import MergeSettings, ServeSettings
from foldind.errors import CheckpointRefused, InvalidRequest, OutOfRoom, WrongState
from foldind.logs import about
from foldind.merging.catalog import CATALOG
from foldind.state.durable import FileDigest, sync
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger, NewSubmission
from foldind.state.records import Submission
from foldind.state.room import merge_bytes

log = logging.getLogger(__name__)

MAX_TEXT = 200
MAX_LABELS = 64
MAX_FILES = 2_000
"""The largest public models have a few hundred shards; an answer that lists the files has to stay below 4 MiB."""
RESERVED_REQUESTS = "inbox "
"""What the request ids of drops begin with."""
RESERVED_BYTES = 64 * 1024 * 1024
"""Disk space that submissions leave to the ledger."""


def check_request_id(request_id: str) -> None:
    """Check that a submitter may choose this request id. Raises InvalidRequest."""
    if request_id.startswith(RESERVED_REQUESTS):
        raise InvalidRequest(
            f"request ids that begin with {RESERVED_REQUESTS!r} are the watched folder's", "choose another"
        )


def content_digest(files: Mapping[str, FileDigest]) -> str:
    """Return the digest that says whether two submissions have the same content; empty if a file's is not known."""
    if not all(digest.sha256 for digest in files.values()):
        return ""
    listed = [[name, digest.size, digest.sha256] for name, digest in sorted(files.items())]
    return sha256(json.dumps(listed).encode()).hexdigest()


def check_digests(files: Mapping[str, FileDigest]) -> None:
    """Check that the digests can be SHA-256 digests. Raises InvalidRequest."""
    for name, digest in files.items():
        if len(digest.sha256) != 64 or set(digest.sha256) - set("0123456789abcdef"):
            raise InvalidRequest(
                f"the sha256 of {name[:80]} is not 64 lower-case hexadecimal digits", "compute it over the file's bytes"
            )


class Admission:
    """The rules of the door; its methods block on the disk."""

    def __init__(self, folder: StateFolder, ledger: Ledger, plan: Plan, merge: MergeSettings, settings: ServeSettings):
        self._folder = folder
        self._ledger = ledger
        self._plan = plan
        self._settings = settings
        self.limits = submission_limits(plan)
        """Of headers and indexes."""
        self._statistics = CATALOG[merge.rule].statistics
        self._additive = CATALOG[merge.rule].additive
        self._max_rank = merge.max_rank
        self._max_bytes = 2 * plan.float32_bytes + 1024**3
        if self._statistics:
            self._max_bytes += statistics_plan(plan, self._statistics).float32_bytes
        # Were the disk filled with what waits, nothing could be merged, and so nothing would ever be removed.
        self._reserved_bytes = RESERVED_BYTES + merge_bytes(plan, merge, settings)

    @property
    def reads_statistics(self) -> bool:
        """Whether the merge rule weighs submissions by the statistics beside them."""
        return bool(self._statistics)

    def wanted(self, files: Mapping[str, FileDigest]) -> Mapping[str, FileDigest]:
        """Return those of the files that are read; what is not read makes no other content of a submission."""
        return {name: digest for name, digest in files.items() if name != STATISTICS or self._statistics}

    def check_announced(self, new: NewSubmission) -> None:
        """Check what can be checked before any byte arrives.

        Raises:
          InvalidRequest, CheckpointRefused: it is no checkpoint, too large, or badly described.
        """
        if len(new.files) > MAX_FILES:
            raise InvalidRequest(
                f"{len(new.files)} files were announced", f"save the model in at most {MAX_FILES} shards"
            )
        check_file_names(new.files.keys())
        if new.takes_out and not self._additive:
            raise WrongState(
                "what this merge rule merged cannot be taken out again",
                "`foldin rollback` undoes the newest version; `foldind rules` tells which rules allow it",
            )
        if new.takes_out and self._max_rank:
            raise WrongState(
                f"with max_rank = {self._max_rank} parts of what was merged may have been dropped, and nothing can be "
                "taken out again",
                "`foldin rollback` undoes the newest version; a state folder made without --max-rank allows it",
            )
        if self._statistics and STATISTICS not in new.files:
            raise without_statistics()
        check_digests({name: digest for name, digest in new.files.items() if digest.sha256})
        if (total := _total(new.files)) > self._max_bytes:
            raise CheckpointRefused(
                f"{total} bytes were announced, and no checkpoint of this base takes more than {self._max_bytes}",
                "check which base it was fine-tuned from",
            )
        texts = [new.name, new.request_id, *(new.labels or {}), *(new.labels or {}).values()]
        if any(len(text) > MAX_TEXT or not text.isprintable() for text in texts):
            raise InvalidRequest(
                f"names, labels and request ids are at most {MAX_TEXT} printable characters", "shorten them"
            )
        if len(new.labels or {}) > MAX_LABELS:
            raise InvalidRequest(f"{len(new.labels or {})} labels were given", f"give at most {MAX_LABELS}")

    def check_room(self, files: Mapping[str, FileDigest]) -> None:
        """Check that the disk has room for the bytes announced, and for a merge besides. Raises OutOfRoom."""
        disk = os.statvfs(self._folder.submissions)
        free, needed = disk.f_bavail * disk.f_frsize, _total(files) + self._reserved_bytes
        if needed > free:
            raise OutOfRoom(
                f"the daemon's disk has {free} bytes free; the submission and its merge need {needed}",
                "submit again once the operator has made room",
            )

    def admit(self, submission_id: str, files: Mapping[str, FileDigest]) -> Submission:
        """Check a submission whose files are complete and durable, and queue it: from here on it is acknowledged.

        Returns:
          The submission: QUEUED, or REJECTED with the reason; or the earlier one with the same content.

        Raises:
          StateError: its bytes lie in another folder, which took the place of the state folder.
        """
        self._folder.check_in_place()
        path = self._folder.submission(submission_id)
        sync(path)
        sync(path.parent)
        try:
            common_rows = self._check_checkpoint(path, submission_id)
        except CheckpointRefused as error:
            about(log, submission_id).warning("rejected: %s", error)
            return self._ledger.reject(submission_id, str(error))
        admitted = self._ledger.enqueue(submission_id, files, content_digest(files), common_rows)
        if admitted.id == submission_id:
            about(log, submission_id).info("queued, %d bytes", _total(files))
            for name, rows in common_rows.items():
                about(log, submission_id).info(
                    "%d common rows of %s: it has %d, the base %d", rows.common, name, rows.submission, rows.base
                )
        else:
            about(log, submission_id).info("withdrawn, submission %s has the same content", admitted.id)
        return admitted

    def _check_checkpoint(self, path: Path, submission_id: str) -> dict[str, RowCounts]:
        submission, checkpoint = self._ledger.get(submission_id), open_checkpoint(path, self.limits)
        common_rows = check_against_plan(
            checkpoint,
            self._plan,
            ignore=self._settings.ignore,
            partial=submission.partial,
            vocab=submission.vocab,
        )
        if self._statistics:
            check_statistics(checkpoint, self._plan, self._statistics, submission.vocab, self.limits.header_bytes)
        return common_rows


def _total(files: Mapping[str, FileDigest]) -> int:
    return sum(digest.size for digest in files.values())
