"""The half of the ledger that records versions and aliases.

`latest` is an alias like any other, except that only a merge and a rollback move it: it names the head.
"""

import json
import sqlite3
import time
from dataclasses import asdict

from foldind.errors import NotFound, WrongState
from foldind.state.database import AT_GATE, COMMIT_ID, Database
from foldind.state.gates import gate_of, may_follow, record_gate, skip_gate, start_gate
from foldind.state.records import Gate, GateVerdict, Version, VersionState
from foldind.state.rows import digests, existing, settle_merged, settle_put_back, settle_taken_out, settle_undone
from foldind.state.sketches import record

LATEST = "latest"

_NO_NUMBER = 2**63 - 1  # the largest that SQLite takes

_SELECT = (
    "SELECT versions.*, submissions.name AS submission_name,"
    " taken.id AS took_out, taken.name AS took_out_name,"
    " (SELECT group_concat(name, ' ') FROM aliases WHERE aliases.version = versions.version) AS aliases"
    " FROM versions JOIN submissions ON submissions.id = versions.submission_id"
    " LEFT JOIN submissions AS taken ON taken.id = submissions.took_out"
)


class Versions:
    """Versions and the names that point at them."""

    def __init__(self, database: Database):
        self._database = database

    def head(self) -> Version | None:
        """Return the version that the next merge starts from, and that `latest` names."""
        return self.aliased(LATEST)

    def last_number(self) -> int:
        """Return the highest number ever given; 0 before the first."""
        return int(self._database.query("SELECT coalesce(max(version), 0) FROM versions")[0][0])

    def submission_name(self, submission_id: str) -> str:
        """Return the name of a submission that is recorded; empty if it has none."""
        ((name,),) = self._database.query("SELECT name FROM submissions WHERE id = ?", submission_id)
        return str(name)

    def commit(self, version: Version, sketch: bytes) -> None:
        """Record a sealed version: it exists, its submission is MERGED, and `latest` names it.

        Args:
          version: the version.
          sketch: of what its submission changed, see state.sketches.
        """
        with self._database.transaction() as connection:
            _insert(connection, version)
            record(connection, version.submission_id, sketch)
            settle_merged(connection, version.submission_id, version.version)
            if took_out := existing(connection, version.submission_id).took_out:
                settle_taken_out(connection, took_out, version.version)
            _supersede(connection, version.parent)
            _point(connection, LATEST, version.version)

    def commit_variant(self, version: Version) -> None:
        """Record a sealed version that is its parent's state, published in another way; its aliases name it."""
        with self._database.transaction() as connection:
            _insert(connection, version)
            _supersede(connection, version.version)  # from the start: its lease begins
            for alias in version.aliases:
                _point(connection, alias, version.version)

    def undo(self, version: Version) -> None:
        """Withdraw the head: `latest` names its parent again, and its submission is WITHDRAWN."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE versions SET state = ? WHERE state = ? AND (version = ? OR (variant AND parent = ?))",
                (VersionState.WITHDRAWN, VersionState.PUBLISHED, version.version, version.version),
            )
            skip_gate(connection, [version.version], "it was rolled back before its turn")
            settle_undone(connection, version.submission_id, version.version)
            if took_out := existing(connection, version.submission_id).took_out:
                settle_put_back(connection, took_out, version.version)
            _supersede(connection, version.version)
            _point(connection, LATEST, version.parent)

    def get(self, number: int) -> Version:
        """Return a version. Raises NotFound."""
        rows = self._database.query(f"{_SELECT} WHERE versions.version = ?", min(number, _NO_NUMBER))
        if not rows:
            raise _no_version(number)
        return _version(rows[0])

    def find(self, number: int, state: VersionState) -> Version | None:
        """Return a version if it is there and in that state."""
        rows = self._database.query(f"{_SELECT} WHERE versions.version = ? AND versions.state = ?", number, state)
        return _version(rows[0]) if rows else None

    def aliased(self, alias: str) -> Version | None:
        """Return the version that an alias names, if there is one."""
        rows = self._database.query(
            f"{_SELECT} WHERE versions.version = (SELECT version FROM aliases WHERE name = ?)", alias
        )
        return _version(rows[0]) if rows else None

    def of_commit(self, commit_id: str) -> Version | None:
        """Return the version with this commit id, if there is one."""
        rows = self._database.query(
            f"{_SELECT} WHERE versions.version = (SELECT version FROM versions WHERE {COMMIT_ID} = ?)", commit_id
        )
        return _version(rows[0]) if rows else None

    def page(self, after: int, size: int) -> list[Version]:
        """Return up to `size` versions above `after`, oldest first."""
        rows = self._database.query(
            f"{_SELECT} WHERE versions.version > ? ORDER BY versions.version LIMIT ?", after, size
        )
        return [_version(row) for row in rows]

    def page_before(self, before: int, size: int) -> list[Version]:
        """Return up to `size` versions below `before`, newest first."""
        rows = self._database.query(
            f"{_SELECT} WHERE versions.version < ? ORDER BY versions.version DESC LIMIT ?",
            min(before, _NO_NUMBER),
            size,
        )
        return [_version(row) for row in rows]

    def all(self) -> list[Version]:
        """Return every version ever, oldest first."""
        return [_version(row) for row in self._database.query(f"{_SELECT} ORDER BY versions.version")]

    def kept(self) -> list[Version]:
        """Return the versions whose files are kept, oldest first."""
        rows = self._database.query(
            f"{_SELECT} WHERE versions.state != ? ORDER BY versions.version", VersionState.PRUNED
        )
        return [_version(row) for row in rows]

    def lineage(self, number: int, most: int) -> list[Version]:
        """Return a version and its ancestors, newest first, at most so many."""
        rows = self._database.query(
            "WITH RECURSIVE line (number) AS (SELECT ? UNION ALL"
            " SELECT parent FROM versions JOIN line ON versions.version = line.number WHERE parent > 0 LIMIT ?)"
            f" {_SELECT} JOIN line ON versions.version = line.number ORDER BY versions.version DESC",
            number,
            most,
        )
        return [_version(row) for row in rows]

    def waiting(self) -> Version | None:
        """Return the oldest version that waits for the gate, or that it was interrupted at, if there is one."""
        rows = self._database.query(
            f"{_SELECT} WHERE versions.version = (SELECT min(version) FROM versions WHERE {AT_GATE})"
        )
        return _version(rows[0]) if rows else None

    def judged(self) -> Version | None:
        """Return the newest version that passed or failed the gate, if there is one."""
        rows = self._database.query(
            f"{_SELECT} WHERE versions.gate IN (?, ?) ORDER BY versions.version DESC LIMIT 1",
            GateVerdict.PASSED,
            GateVerdict.FAILED,
        )
        return _version(rows[0]) if rows else None

    def start_gate(self, number: int) -> bool:
        """Record that the gate runs on a version that waits; it is not pruned meanwhile. False: it does not wait."""
        with self._database.transaction() as connection:
            return start_gate(connection, number)

    def settle_gate(self, number: int, gate: Gate, alias: str) -> bool:
        """Record what the gate said; if it passed, the alias names that version, unless it names a newer one.

        Returns:
          Whether the alias names it now.
        """
        with self._database.transaction() as connection:
            record_gate(connection, number, gate)
            if gate.verdict is not GateVerdict.PASSED or not may_follow(connection, number, alias):
                return False
            _point(connection, alias, number)
            return True

    def point(self, alias: str, number: int) -> None:
        """Point an alias at a version; 0 removes it.

        Raises:
          NotFound: there is no such version.
          WrongState: its files are no longer kept.
        """
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT state FROM versions WHERE version = ?", (min(number, _NO_NUMBER),)
            ).fetchone()
            if number and row is None:
                raise _no_version(number)
            if number and row["state"] == VersionState.PRUNED:
                raise WrongState(f"the files of v{number} are no longer kept", "see `foldin snapshots`")
            _point(connection, alias, number)

    def prune(self, keep: int, superseded_before: float) -> list[int]:
        """Mark the versions whose files may go as PRUNED, and return them; the caller deletes the files afterwards.

        Those are the versions that no alias names, that are not among the newest, and were superseded long enough ago.

        Args:
          keep: how many of the newest published versions stay; the head and its parent always do.
          superseded_before: seconds since the epoch.
        """
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT version FROM versions WHERE state != :pruned AND superseded_at < :before AND gate != :running"
                " AND version NOT IN (SELECT version FROM aliases)"
                " AND version NOT IN (SELECT parent FROM versions JOIN aliases USING (version) WHERE name = :latest)"
                " AND version NOT IN (SELECT version FROM versions WHERE state = :published"
                " ORDER BY version DESC LIMIT :keep) ORDER BY version",
                {
                    "pruned": VersionState.PRUNED,
                    "running": GateVerdict.RUNNING,
                    "published": VersionState.PUBLISHED,
                    "before": superseded_before,
                    "latest": LATEST,
                    "keep": keep,
                },
            ).fetchall()
            numbers = [row["version"] for row in rows]
            connection.executemany(
                "UPDATE versions SET state = ? WHERE version = ?",
                [(VersionState.PRUNED, number) for number in numbers],
            )
            skip_gate(connection, numbers, "its files went before its turn")
        return numbers


def _insert(connection: sqlite3.Connection, version: Version) -> None:
    connection.execute(
        "INSERT INTO versions (version, parent, state, submission_id, created_at, merge_seconds, rule, publication,"
        " variant, submissions, lambda, accumulated_norm, task_vector_norm, task_vector_norm_sum, state_files, files,"
        " gate)"
        " VALUES (:version, :parent, :state, :submission_id, :created_at, :merge_seconds, :rule, :publication,"
        " :variant, :submissions, :lambda_, :accumulated_norm, :task_vector_norm, :task_vector_norm_sum, :state_files,"
        " :files, :gate)",
        asdict(version)
        | {"state_files": json.dumps(version.state_files), "files": json.dumps(version.files)}
        | {"aliases": None, "gate": version.gate.verdict if version.gate else ""},
    )


def _no_version(number: int) -> NotFound:
    return NotFound(f"there is no version v{number}", "see `foldin snapshots`")


def _supersede(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("UPDATE versions SET superseded_at = ? WHERE version = ?", (time.time(), number))


def _point(connection: sqlite3.Connection, alias: str, number: int) -> None:
    if number:
        connection.execute(
            "INSERT INTO aliases (name, version) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET version = excluded.version",
            (alias, number),
        )
    else:
        connection.execute("DELETE FROM aliases WHERE name = ?", (alias,))


def _version(row: sqlite3.Row) -> Version:
    return Version(
        version=row["version"],
        parent=row["parent"],
        state=VersionState(row["state"]),
        submission_id=row["submission_id"],
        submission_name=row["submission_name"],
        created_at=row["created_at"],
        merge_seconds=row["merge_seconds"],
        rule=row["rule"],
        publication=row["publication"],
        variant=bool(row["variant"]),
        submissions=row["submissions"],
        lambda_=row["lambda"],
        accumulated_norm=row["accumulated_norm"],
        task_vector_norm=row["task_vector_norm"],
        task_vector_norm_sum=row["task_vector_norm_sum"],
        state_files=digests(row["state_files"]),
        files=digests(row["files"]),
        gate=gate_of(row),
        aliases=tuple(sorted((row["aliases"] or "").split())),
        took_out="" if row["variant"] else row["took_out"] or "",
        took_out_name="" if row["variant"] else row["took_out_name"] or "",
    )
