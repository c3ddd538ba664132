"""The SQLite file under the ledger: its schema, and transactions."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from foldind.errors import StateError

FORMAT = 5

COMMIT_ID = "substr(json_extract(files, '$.\"foldin.json\"[1]'), 1, 40)"
"""Of a version, in SQL: what `Version.commit_id` is."""

AT_GATE = "gate IN ('WAITING', 'RUNNING')"
"""Of a version, in SQL: whether it waits for the gate or is at it."""

_UPGRADES = {
    2: (
        "ALTER TABLE submissions ADD COLUMN vocab TEXT NOT NULL DEFAULT 'same'",
        "ALTER TABLE submissions ADD COLUMN common_rows TEXT NOT NULL DEFAULT '{}'",
    ),
    3: (
        "ALTER TABLE versions ADD COLUMN publication TEXT NOT NULL DEFAULT 'norm'",
        "ALTER TABLE versions ADD COLUMN variant INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE submissions ADD COLUMN takes_out INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE submissions ADD COLUMN took_out TEXT NOT NULL DEFAULT ''",
    ),
    4: (
        f"CREATE INDEX versions_by_commit ON versions ({COMMIT_ID})",
        "CREATE INDEX submissions_by_change ON submissions (state, updated_at)",
        "CREATE TABLE sketches (submission_id TEXT PRIMARY KEY REFERENCES submissions (id), sketch BLOB NOT NULL)",
        "ALTER TABLE versions ADD COLUMN gate TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE versions ADD COLUMN gate_reason TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE versions ADD COLUMN scores TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE versions ADD COLUMN gate_at REAL NOT NULL DEFAULT 0",
        "ALTER TABLE versions ADD COLUMN gate_seconds REAL NOT NULL DEFAULT 0",
        f"CREATE INDEX versions_at_gate ON versions (version) WHERE {AT_GATE}",
        # Those names stand for something else now, and nobody could move these aliases any more.
        "UPDATE OR IGNORE aliases SET name = name || '.old'"
        " WHERE name = 'main' OR (length(name) = 40 AND name NOT GLOB '*[^0-9a-f]*')",
    ),
}
"""Format -> what makes the next one of it; what was recorded stays as it is."""

_SCHEMA = f"""
CREATE TABLE submissions (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  place INTEGER UNIQUE,              -- in the queue; given at commit, kept by retries
  name TEXT NOT NULL,
  labels TEXT NOT NULL,              -- JSON object
  state TEXT NOT NULL,
  reason TEXT NOT NULL DEFAULT '',
  version INTEGER NOT NULL DEFAULT 0,
  files TEXT NOT NULL,               -- JSON object: name -> [size, sha256]
  partial INTEGER NOT NULL,
  vocab TEXT NOT NULL DEFAULT 'same',
  common_rows TEXT NOT NULL DEFAULT '{{}}', -- JSON object: tensor -> [rows in the submission, rows in the base]
  forced INTEGER NOT NULL,
  takes_out INTEGER NOT NULL DEFAULT 0, -- whether it is to be taken out of what is merged
  took_out TEXT NOT NULL DEFAULT '', -- id of the submission that it took out, or is about to
  uploaded INTEGER NOT NULL DEFAULT 1, -- whether its bytes arrive in chunks
  attempts INTEGER NOT NULL DEFAULT 0,
  content_digest TEXT NOT NULL DEFAULT '',
  bytes_kept INTEGER NOT NULL DEFAULT 1,
  created_at REAL NOT NULL,
  updated_at REAL NOT NULL
);
CREATE INDEX submissions_by_state ON submissions (state, place);
CREATE INDEX submissions_by_change ON submissions (state, updated_at);
CREATE INDEX submissions_by_content ON submissions (content_digest);
CREATE TABLE requests (
  request_id TEXT PRIMARY KEY,       -- chosen by a submitter, who may have several for one submission
  submission_id TEXT NOT NULL REFERENCES submissions (id)
);
CREATE TABLE events (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  submission_id TEXT NOT NULL REFERENCES submissions (id),
  at REAL NOT NULL,
  state TEXT NOT NULL,
  detail TEXT NOT NULL
);
CREATE INDEX events_by_submission ON events (submission_id);
CREATE TABLE versions (
  version INTEGER PRIMARY KEY,
  parent INTEGER NOT NULL,
  state TEXT NOT NULL,
  submission_id TEXT NOT NULL REFERENCES submissions (id),
  created_at REAL NOT NULL,
  superseded_at REAL,
  merge_seconds REAL NOT NULL,
  rule TEXT NOT NULL,
  publication TEXT NOT NULL DEFAULT 'norm',
  variant INTEGER NOT NULL DEFAULT 0, -- whether it is its parent's state, published in another way
  submissions INTEGER NOT NULL,
  lambda REAL NOT NULL,
  accumulated_norm REAL NOT NULL,
  task_vector_norm REAL NOT NULL,
  task_vector_norm_sum REAL NOT NULL,
  state_files TEXT NOT NULL,         -- JSON object: name -> [size, sha256]
  files TEXT NOT NULL,
  gate TEXT NOT NULL DEFAULT '',     -- verdict; empty: it was not asked
  gate_reason TEXT NOT NULL DEFAULT '',
  scores TEXT NOT NULL DEFAULT '{{}}', -- JSON object: name -> what the gate measured
  gate_at REAL NOT NULL DEFAULT 0,   -- when it passed or failed; 0: it did neither
  gate_seconds REAL NOT NULL DEFAULT 0
);
CREATE INDEX versions_by_commit ON versions ({COMMIT_ID});
CREATE INDEX versions_at_gate ON versions (version) WHERE {AT_GATE};
CREATE TABLE sketches (
  submission_id TEXT PRIMARY KEY REFERENCES submissions (id),
  sketch BLOB NOT NULL               -- float32, little-endian
);
CREATE TABLE aliases (
  name TEXT PRIMARY KEY,
  version INTEGER NOT NULL REFERENCES versions (version)
);
"""


class Database:
    """One connection that holds the file exclusively; safe to use from several threads, one at a time."""

    def __init__(self, path: Path, *, create: bool = False):
        """Open the file, or create it; a missing one is never made up.

        Raises:
          StateError: it is missing, damaged, in use, or of another release.
        """
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=0,
            )
            self._connection.row_factory = sqlite3.Row
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            found = self._connection.execute("PRAGMA user_version").fetchone()[0]
            (health,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            locked = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            remedy = "close the program that has it open" if locked else "restore the state folder from a backup"
            raise StateError(f"the ledger {path} cannot be opened ({error})", remedy) from error
        if health != "ok":
            damage = " ".join(health.split())
            raise StateError(f"the ledger {path} is damaged ({damage})", "restore the state folder from a backup")
        if create:
            with self.transaction() as connection:
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={FORMAT}")
            return
        while found in _UPGRADES:
            with self.transaction() as connection:
                for statement in _UPGRADES[found]:
                    connection.execute(statement)
                found += 1
                connection.execute(f"PRAGMA user_version={found}")
        if found != FORMAT:
            raise StateError(
                f"the ledger {path} has format {found}, and this release reads format {FORMAT}",
                "run the release that wrote it",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run statements that become durable together, or not at all."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.OperationalError):  # SQLite may have rolled back by itself
                    self._connection.execute("ROLLBACK")
                raise

    def query(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """Return the rows of a SELECT."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def check(self) -> list[str]:
        """Return what SQLite's own integrity check finds."""
        return [row[0] for row in self.query("PRAGMA integrity_check") if row[0] != "ok"]
