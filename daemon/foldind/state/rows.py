"""The rows of submissions: statements that run inside a transaction of their caller's."""

import json
import sqlite3
import time
from collections.abc import Mapping

from foldind.checkpoints.vocabulary import RowCounts, VocabPolicy
from foldind.errors import NotFound
from foldind.state.durable import FileDigest
from foldind.state.records import Submission, SubmissionState

RECEIVING, QUEUED, MERGING, MERGED, REJECTED, QUARANTINED, WITHDRAWN = SubmissionState
QUEUED_OR_MERGED = (QUEUED, MERGING, MERGED)


def settle_merged(connection: sqlite3.Connection, submission_id: str, version: int) -> None:
    """Within the transaction that records a version: its submission is MERGED."""
    connection.execute("UPDATE submissions SET version = ? WHERE id = ?", (version, submission_id))
    settle(connection, submission_id, MERGED, f"in v{version}", reason="")


def settle_undone(connection: sqlite3.Connection, submission_id: str, version: int) -> None:
    """Within the transaction that undoes a version: its submission is WITHDRAWN."""
    settle(connection, submission_id, WITHDRAWN, f"v{version} was rolled back")


def settle(
    connection: sqlite3.Connection, submission_id: str, state: SubmissionState, detail: str, reason: str | None = None
) -> None:
    """Move a submission to a state in which nothing more happens to it; its bytes are no longer needed."""
    connection.execute("UPDATE submissions SET bytes_kept = 0 WHERE id = ?", (submission_id,))
    move(connection, submission_id, state, detail, reason=detail if reason is None else reason)


def move(
    connection: sqlite3.Connection, submission_id: str, state: SubmissionState, detail: str = "", reason: str = ""
) -> None:
    """Move a submission to a state, and record the transition."""
    connection.execute(
        "UPDATE submissions SET state = ?, reason = ?, updated_at = ? WHERE id = ?",
        (state, reason, time.time(), submission_id),
    )
    record_event(connection, submission_id, state, detail)


def record_event(connection: sqlite3.Connection, submission_id: str, state: SubmissionState, detail: str) -> None:
    """Record a transition."""
    connection.execute(
        "INSERT INTO events (submission_id, at, state, detail) VALUES (?, ?, ?, ?)",
        (submission_id, time.time(), state, detail),
    )


def forget_repetition(connection: sqlite3.Connection, submission_id: str) -> None:
    """Forget the last two transitions where they only repeat the two before: a disk may stay full for days."""
    last = connection.execute(
        "SELECT number, state, detail FROM events WHERE submission_id = ? ORDER BY number DESC LIMIT 4", [submission_id]
    ).fetchall()
    said = [(row["state"], row["detail"]) for row in last]
    if len(said) == 4 and said[:2] == said[2:]:
        connection.execute("DELETE FROM events WHERE number IN (?, ?)", (last[0]["number"], last[1]["number"]))


def record_request(connection: sqlite3.Connection, request_id: str, submission_id: str) -> None:
    """Record which submission a request id means from now on; an empty one means none."""
    if request_id:
        connection.execute(
            "INSERT INTO requests (request_id, submission_id) VALUES (?, ?)", (request_id, submission_id)
        )


TWIN = "it has the same content as submission "
"""What the reason of a submission that was withdrawn for the sake of another begins with; then comes its id.

Never reword it: ledgers hold this sentence, and `Ledger.twin` reads the id out of it.
"""


def requested(connection: sqlite3.Connection, request_id: str) -> Submission | None:
    """Return the submission that a request id means, if there is one."""
    return find_one(connection, "id = (SELECT submission_id FROM requests WHERE request_id = ?)", request_id)


def find_one(connection: sqlite3.Connection, condition: str, *values: object) -> Submission | None:
    """Return the oldest submission that meets a condition, if there is one."""
    row = connection.execute(f"SELECT * FROM submissions WHERE {condition} ORDER BY number", values).fetchone()
    return submission_of(row) if row else None


def with_content(connection: sqlite3.Connection, content_digest: str, *states: SubmissionState) -> Submission | None:
    """Return the oldest submission of a content in one of the states, if there is one; none that takes it out."""
    marks = ", ".join("?" * len(states))
    return find_one(connection, f"content_digest = ? AND NOT takes_out AND state IN ({marks})", content_digest, *states)


def arriving(
    connection: sqlite3.Connection,
    content_digest: str,
    *,
    partial: bool,
    vocab: VocabPolicy,
    forced: bool,
    takes_out: bool,
    uploaded: bool,
) -> Submission | None:
    """Return the oldest one still arriving of a content that came and was described alike, if there is one."""
    return find_one(
        connection,
        "content_digest = ? AND state = ? AND partial = ? AND vocab = ? AND forced >= ? AND takes_out = ?"
        " AND uploaded = ?",
        content_digest,
        RECEIVING,
        partial,
        vocab,
        forced,
        takes_out,
        uploaded,
    )


def withdraw_if_duplicate(
    connection: sqlite3.Connection, submission: Submission, content_digest: str
) -> Submission | None:
    """Withdraw a submission whose content another one has that is queued or merged, and return that one."""
    if (
        submission.forced
        or submission.takes_out
        or not (twin := with_content(connection, content_digest, *QUEUED_OR_MERGED))
    ):
        return None
    settle(connection, submission.id, WITHDRAWN, f"{TWIN}{twin.id}")
    return twin


def reject_unless_removable(
    connection: sqlite3.Connection, submission: Submission, content_digest: str
) -> Submission | None:
    """Reject a submission that is to take out what cannot be, and return None; else return what it is to take out.

    It cannot be taken out if it is not merged, or if nothing else is.
    """
    if (found := with_content(connection, content_digest, MERGED)) is None:
        settle(connection, submission.id, REJECTED, "nothing that is merged has its content; see `foldin list`")
        return None
    (left,) = connection.execute(
        "SELECT submissions FROM versions JOIN aliases USING (version) WHERE name = 'latest'"
    ).fetchone()
    if left < 2:
        settle(connection, submission.id, REJECTED, "nothing else is merged; `foldin rollback` undoes the only version")
        return None
    return found


def settle_taken_out(connection: sqlite3.Connection, submission_id: str, version: int) -> None:
    """Within the transaction that records a version: a submission that was merged is no longer in it."""
    settle(connection, submission_id, WITHDRAWN, f"taken out in v{version}")


def settle_put_back(connection: sqlite3.Connection, submission_id: str, version: int) -> None:
    """Within the transaction that undoes a version: the submission that it took out is merged again."""
    settle(connection, submission_id, MERGED, f"v{version}, which took it out, was rolled back", reason="")


def representative(connection: sqlite3.Connection, submission: Submission) -> Submission:
    """Return a submission, or the one with the same content for whose sake it was withdrawn."""
    if submission.state is not WITHDRAWN or not submission.content_digest or submission.takes_out:
        return submission
    return with_content(connection, submission.content_digest, *QUEUED_OR_MERGED) or submission


def existing(connection: sqlite3.Connection, submission_id: str) -> Submission:
    """Return a submission. Raises NotFound."""
    if submission := find_one(connection, "id = ?", submission_id):
        return submission
    raise no_submission(submission_id)


def no_submission(submission_id: str) -> NotFound:
    """Return the error for an id that nobody has."""
    return NotFound(f"there is no submission {submission_id[:80]!r}", "see `foldin list`")


def sizes(files: Mapping[str, FileDigest]) -> dict[str, int]:
    """Return the lengths of files by name."""
    return {name: digest.size for name, digest in files.items()}


def contradict(known: Mapping[str, FileDigest], new: Mapping[str, FileDigest]) -> bool:
    """Tell whether two descriptions of files cannot be of the same files."""
    return sizes(known) != sizes(new) or any(
        digest.sha256 and new[name].sha256 and digest != new[name] for name, digest in known.items()
    )


def submission_of(row: sqlite3.Row) -> Submission:
    """Return a row as a value."""
    return Submission(
        id=row["id"],
        number=row["number"],
        name=row["name"],
        labels=json.loads(row["labels"]),
        state=SubmissionState(row["state"]),
        reason=row["reason"],
        version=row["version"],
        files=digests(row["files"]),
        partial=bool(row["partial"]),
        vocab=VocabPolicy(row["vocab"]),
        common_rows={name: RowCounts(*counts) for name, counts in json.loads(row["common_rows"]).items()},
        forced=bool(row["forced"]),
        takes_out=bool(row["takes_out"]),
        took_out=row["took_out"],
        uploaded=bool(row["uploaded"]),
        attempts=row["attempts"],
        content_digest=row["content_digest"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        bytes_kept=bool(row["bytes_kept"]),
    )


def digests(text: str) -> dict[str, FileDigest]:
    """Read a column of file digests."""
    return {name: FileDigest(*digest) for name, digest in json.loads(text).items()}
