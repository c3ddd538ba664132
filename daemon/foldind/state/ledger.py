"""The ledger: submissions and their history. The only queue, and the commit point of everything.

Every method that writes is one transaction, durable when it returns. Methods block on the disk: call them off the
event loop. The versions are in the half of the ledger that is versions.py.
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from foldind.checkpoints.vocabulary import RowCounts, VocabPolicy
from foldind.errors import Conflict, WrongState
from foldind.state import rows
from foldind.state.database import Database
from foldind.state.durable import FileDigest
from foldind.state.records import Event, Submission, SubmissionState
from foldind.state.rows import MERGING, QUARANTINED, QUEUED, QUEUED_OR_MERGED, RECEIVING, REJECTED, WITHDRAWN


@dataclass(frozen=True)
class NewSubmission:
    """What a submitter says of a checkpoint."""

    files: Mapping[str, FileDigest]
    """Digests may be empty."""
    name: str = ""
    labels: Mapping[str, str] | None = None
    request_id: str = ""
    partial: bool = False
    vocab: VocabPolicy = VocabPolicy.SAME
    forced: bool = False
    takes_out: bool = False
    """Whether it is to be taken out of what is merged."""
    content_digest: str = ""
    """Empty where the digests are not known yet."""
    uploaded: bool = True
    """Whether its bytes arrive in chunks; an upload and a copy never join each other while they arrive."""


class Ledger:
    """Submissions, from the first byte to what became of them."""

    def __init__(self, database: Database):
        self._database = database

    def create(self, new: NewSubmission) -> Submission:
        """Return a RECEIVING submission, or the one that the request id or the content already means.

        Raises:
          Conflict: the request id was used for other files.
        """
        with self._database.transaction() as connection:
            if new.request_id and (known := rows.requested(connection, new.request_id)):
                if rows.contradict(known.files, new.files):
                    raise Conflict(
                        f"request id {new.request_id!r} belongs to submission {known.id}, which has other files",
                        "use another request id",
                    )
                return known
            if new.content_digest:
                # One that is taken by force joins its own broken upload, and nothing else.
                alone = new.forced or new.takes_out
                known = None if alone else rows.with_content(connection, new.content_digest, *QUEUED_OR_MERGED)
                known = known or rows.arriving(
                    connection,
                    new.content_digest,
                    partial=new.partial,
                    vocab=new.vocab,
                    forced=new.forced,
                    takes_out=new.takes_out,
                    uploaded=new.uploaded,
                )
                if known:
                    rows.record_request(connection, new.request_id, known.id)
                    return known
            now = time.time()
            submission_id = f"{int(now * 1000):011x}{secrets.token_hex(4)}"
            connection.execute(
                "INSERT INTO submissions (id, name, labels, state, files, partial, vocab, forced, takes_out,"
                " uploaded, content_digest, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    submission_id,
                    new.name,
                    json.dumps(dict(new.labels or {}), sort_keys=True),
                    RECEIVING,
                    json.dumps(new.files),
                    new.partial,
                    new.vocab,
                    new.forced,
                    new.takes_out,
                    new.uploaded,
                    new.content_digest,
                    now,
                    now,
                ),
            )
            rows.record_request(connection, new.request_id, submission_id)
            rows.record_event(connection, submission_id, RECEIVING, "")
            return rows.existing(connection, submission_id)

    def enqueue(
        self,
        submission_id: str,
        files: Mapping[str, FileDigest],
        content_digest: str,
        common_rows: Mapping[str, RowCounts] | None = None,
    ) -> Submission:
        """Queue a RECEIVING submission whose bytes are durable; this is what acknowledges it.

        Args:
          submission_id: of the submission.
          files: with their digests.
          content_digest: made of those.
          common_rows: the tensors of which only the rows are folded that the base has too.

        Returns:
          The submission, or the earlier one with the same content that was queued or merged meanwhile; this one is
          withdrawn then.
        """
        with self._database.transaction() as connection:
            submission = rows.existing(connection, submission_id)
            if submission.state is not RECEIVING:
                return submission
            connection.execute(
                "UPDATE submissions SET files = ?, content_digest = ?, common_rows = ? WHERE id = ?",
                (json.dumps(files), content_digest, json.dumps(common_rows or {}), submission_id),
            )
            if twin := rows.withdraw_if_duplicate(connection, submission, content_digest):
                return twin
            if submission.takes_out and rows.reject_unless_removable(connection, submission, content_digest) is None:
                return rows.existing(connection, submission_id)
            connection.execute(
                "UPDATE submissions SET place = (SELECT coalesce(max(place), 0) + 1 FROM submissions) WHERE id = ?",
                (submission_id,),
            )
            rows.move(connection, submission_id, QUEUED)
            return rows.existing(connection, submission_id)

    def take_next(self) -> Submission | None:
        """Mark the submission whose turn it is as MERGING and return it as it was, if there is one.

        That is the one left MERGING, else the head of the queue; a take-out of what is not merged comes back REJECTED.
        """
        with self._database.transaction() as connection:
            submission = rows.find_one(connection, "state = ?", MERGING) or rows.find_one(
                connection, "place = (SELECT min(place) FROM submissions WHERE state = ?)", QUEUED
            )
            if submission is None:
                return None
            if submission.takes_out:
                found = rows.reject_unless_removable(connection, submission, submission.content_digest)
                if found is None:
                    return rows.existing(connection, submission.id)
                connection.execute("UPDATE submissions SET took_out = ? WHERE id = ?", (found.id, submission.id))
                submission = replace(submission, took_out=found.id)
            if submission.state is QUEUED:
                rows.move(connection, submission.id, MERGING)
            return submission

    def requeue(self, submission_id: str, detail: str) -> None:
        """Put a MERGING submission back to its place: the interruption was not its fault."""
        with self._database.transaction() as connection:
            if rows.existing(connection, submission_id).state is MERGING:
                rows.move(connection, submission_id, QUEUED, detail)
                rows.forget_repetition(connection, submission_id)

    def count_attempt(self, submission_id: str, detail: str, max_attempts: int) -> Submission:
        """Record that folding a submission failed; it is queued again, or QUARANTINED after max_attempts.

        One that was recorded as merged before something failed stays so.
        """
        with self._database.transaction() as connection:
            if rows.existing(connection, submission_id).state is not MERGING:
                return rows.existing(connection, submission_id)
            connection.execute("UPDATE submissions SET attempts = attempts + 1 WHERE id = ?", (submission_id,))
            attempts = rows.existing(connection, submission_id).attempts
            if attempts < max_attempts:
                rows.move(connection, submission_id, QUEUED, f"attempt {attempts} of {max_attempts} failed: {detail}")
            else:
                reason = f"{attempts} attempts at folding it failed, the last because {detail}"
                rows.move(connection, submission_id, QUARANTINED, reason, reason=reason)
            return rows.existing(connection, submission_id)

    def reject(self, submission_id: str, reason: str) -> Submission:
        """Record that a checkpoint cannot be merged."""
        with self._database.transaction() as connection:
            if not rows.existing(connection, submission_id).state.settled:
                rows.settle(connection, submission_id, REJECTED, reason)
            return rows.existing(connection, submission_id)

    def withdraw(self, submission_id: str, reason: str) -> Submission:
        """Take a submission back before it is merged.

        Raises:
          NotFound: there is none.
          WrongState: it is being merged, or settled.
        """
        with self._database.transaction() as connection:
            submission = rows.existing(connection, submission_id)
            if submission.state not in (RECEIVING, QUEUED, QUARANTINED):
                raise WrongState(
                    f"submission {submission_id} is {submission.state}",
                    "only what is not yet being merged can be withdrawn; a rollback undoes the newest version",
                )
            rows.settle(connection, submission_id, WITHDRAWN, reason)
            return rows.existing(connection, submission_id)

    def retry(self, submission_id: str) -> Submission:
        """Queue a QUARANTINED submission again, at its old place.

        Returns the other submission instead, and withdraws this one, where the same content was queued or merged
        meanwhile.

        Raises:
          NotFound: there is none.
          WrongState: it is in another state.
        """
        with self._database.transaction() as connection:
            submission = rows.existing(connection, submission_id)
            if submission.state is not QUARANTINED:
                raise WrongState(
                    f"submission {submission_id} is {submission.state}",
                    "only a QUARANTINED submission can be retried; submit a rejected checkpoint anew",
                )
            if twin := rows.withdraw_if_duplicate(connection, submission, submission.content_digest):
                return twin
            connection.execute("UPDATE submissions SET attempts = 0 WHERE id = ?", (submission_id,))
            rows.move(connection, submission_id, QUEUED, "retried")
            return rows.existing(connection, submission_id)

    def get(self, submission_id: str) -> Submission:
        """Return a submission. Raises NotFound."""
        found = self._database.query("SELECT * FROM submissions WHERE id = ?", submission_id)
        if not found:
            raise rows.no_submission(submission_id)
        return rows.submission_of(found[0])

    def requested(self, request_id: str) -> Submission | None:
        """Return the submission that a request id means, if there is one."""
        with self._database.transaction() as connection:
            return rows.requested(connection, request_id)

    def twin(self, submission: Submission) -> Submission | None:
        """Return the one with the same content for whose sake a submission was withdrawn, whatever became of that."""
        if submission.state is not WITHDRAWN or not submission.reason.startswith(rows.TWIN):
            return None
        return self.get(submission.reason.removeprefix(rows.TWIN))

    def unsettled(self) -> set[str]:
        """Return the ids of the submissions to which something is still to happen."""
        states = (RECEIVING, QUEUED, MERGING)
        return {
            row["id"] for row in self._database.query("SELECT id FROM submissions WHERE state IN (?, ?, ?)", *states)
        }

    def representative(self, submission_id: str) -> Submission:
        """Return a submission, or the one with the same content for whose sake it was withdrawn. Raises NotFound."""
        with self._database.transaction() as connection:
            return rows.representative(connection, rows.existing(connection, submission_id))

    def history(self, submission_id: str) -> list[Event]:
        """Return what happened to a submission, oldest first."""
        found = self._database.query("SELECT * FROM events WHERE submission_id = ? ORDER BY number", submission_id)
        return [Event(row["at"], SubmissionState(row["state"]), row["detail"]) for row in found]

    def page(self, after: int, size: int, states: Sequence[SubmissionState] = ()) -> list[Submission]:
        """Return up to `size` submissions numbered above `after`, oldest first, of these states (none: all)."""
        wanted = tuple(states) or tuple(SubmissionState)
        marks = ", ".join("?" * len(wanted))
        statement = f"SELECT * FROM submissions WHERE number > ? AND state IN ({marks}) ORDER BY number LIMIT ?"
        return [rows.submission_of(row) for row in self._database.query(statement, after, *wanted, size)]

    def all(self, *states: SubmissionState) -> list[Submission]:
        """Return all submissions of these states (none: of every state), oldest first."""
        return self.page(0, -1, states)

    def newest(self, size: int, *states: SubmissionState) -> list[Submission]:
        """Return up to `size` submissions of these states, the one that changed last first."""
        # State by state, each from the end of an index: of several at once SQLite reads and sorts all there ever were.
        statement = "SELECT * FROM submissions WHERE state = ? ORDER BY updated_at DESC LIMIT ?"
        found = [row for state in states for row in self._database.query(statement, state, size)]
        found.sort(key=lambda row: float(row["updated_at"]), reverse=True)
        return [rows.submission_of(row) for row in found[:size]]

    def receiving_since_before(self, moment: float) -> list[Submission]:
        """Return the uploads that were opened before a moment (seconds since the epoch) and never completed."""
        found = self._database.query("SELECT * FROM submissions WHERE state = ? AND updated_at < ?", RECEIVING, moment)
        return [rows.submission_of(row) for row in found]

    def bytes_kept(self, submission_id: str) -> bool | None:
        """Tell whether the bytes of a submission are to be kept; None if there is no such submission."""
        found = self._database.query("SELECT bytes_kept FROM submissions WHERE id = ?", submission_id)
        return bool(found[0][0]) if found else None
