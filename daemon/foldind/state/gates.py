"""Within a transaction of the ledger: what the gate said of a version."""

import json
import sqlite3
from collections.abc import Iterable

from foldind.state.records import Gate, GateVerdict, VersionState


def gate_of(row: sqlite3.Row) -> Gate | None:
    """Return what is recorded with a version."""
    if not row["gate"]:
        return None
    verdict, scores = GateVerdict(row["gate"]), json.loads(row["scores"])
    return Gate(verdict, row["gate_reason"], scores, row["gate_at"], row["gate_seconds"])


def start_gate(connection: sqlite3.Connection, number: int) -> bool:
    """Record that the gate runs, if the version waits for it; return whether it does."""
    changed = connection.execute(
        "UPDATE versions SET gate = ? WHERE version = ? AND gate IN (?, ?)",
        (GateVerdict.RUNNING, number, GateVerdict.WAITING, GateVerdict.RUNNING),
    )
    return changed.rowcount > 0


def record_gate(connection: sqlite3.Connection, number: int, gate: Gate) -> None:
    """Record what the gate said."""
    connection.execute(
        "UPDATE versions SET gate = ?, gate_reason = ?, scores = ?, gate_at = ?, gate_seconds = ? WHERE version = ?",
        (gate.verdict, gate.reason, json.dumps(gate.scores), gate.judged_at, gate.seconds, number),
    )


def skip_gate(connection: sqlite3.Connection, numbers: Iterable[int], reason: str) -> None:
    """Record of those versions that still wait that the gate is not asked."""
    connection.executemany(
        "UPDATE versions SET gate = ?, gate_reason = ? WHERE version = ? AND gate = ?",
        [(GateVerdict.SKIPPED, reason, number, GateVerdict.WAITING) for number in numbers],
    )


def may_follow(connection: sqlite3.Connection, number: int, alias: str) -> bool:
    """Return whether an alias may move to a version: it is published, and the alias names no newer one that is."""
    row = connection.execute(
        "SELECT state = :published AND NOT EXISTS (SELECT 1 FROM aliases JOIN versions AS named USING (version)"
        " WHERE name = :alias AND named.version > :number AND named.state = :published)"
        " FROM versions WHERE version = :number",
        {"published": VersionState.PUBLISHED, "alias": alias, "number": number},
    ).fetchone()
    return bool(row[0])
