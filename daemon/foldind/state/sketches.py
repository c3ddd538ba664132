"""Sketches of the submissions that were merged: what each is, in kilobytes, and from them how alike any two are.

A sketch is what merging.sketch makes of a task vector. It stays when its submission is taken out or rolled back.
"""

import math
import sqlite3
import struct
from collections.abc import Collection, Sequence
from operator import mul
from typing import NamedTuple

from foldind.state.database import Database
from foldind.state.rows import MERGED

Sketch = tuple[float, ...]


class Likeness(NamedTuple):
    """How alike some submissions are."""

    cosines: list[list[float]]
    """Estimates of the cosines of their task vectors, row by row; NaN where a sketch is zero or not finite."""
    standard_error: float
    """Of a cosine near 0, 1 / sqrt(buckets); nearer to 1 or -1 it is less by the factor 1 - cosine^2. More of task
    vectors of low rank in few matrices, see merging.sketch."""


def record(connection: sqlite3.Connection, submission_id: str, sketch: bytes) -> None:
    """Within the transaction that records a version: the sketch of its submission, float32, little-endian."""
    connection.execute("INSERT INTO sketches (submission_id, sketch) VALUES (?, ?)", (submission_id, sketch))


class Sketches:
    """The part of the ledger that keeps them."""

    def __init__(self, database: Database):
        self._database = database

    def of(self, submission_ids: Collection[str]) -> dict[str, Sketch]:
        """Return the sketches of submissions by id, in this order; what was merged before there were any has none."""
        marks = ", ".join("?" * len(submission_ids))
        rows = self._database.query(f"SELECT * FROM sketches WHERE submission_id IN ({marks})", *submission_ids)
        found = {row["submission_id"]: row["sketch"] for row in rows}
        return {key: struct.unpack(f"<{len(found[key]) // 4}f", found[key]) for key in submission_ids if key in found}

    def newest(self, count: int) -> list[str]:
        """Return the ids of up to `count` submissions that are merged and have a sketch, the newest first."""
        rows = self._database.query(
            "SELECT id FROM submissions JOIN sketches ON submission_id = id"
            " WHERE state = ? AND NOT takes_out ORDER BY updated_at DESC, version DESC LIMIT ?",
            MERGED,
            count,
        )
        return [row["id"] for row in rows]


def cosine(one: Sketch, other: Sketch) -> float:
    """Return the estimated cosine of two task vectors; NaN where a sketch is zero or not finite."""
    squares = _inner(one, one) * _inner(other, other)
    return _inner(one, other) / math.sqrt(squares) if 0 < squares < math.inf else math.nan


def likeness(sketches: Sequence[Sketch]) -> Likeness:
    """Return the cosines of all pairs of sketches, of one width."""
    cosines = [[math.nan] * len(sketches) for _ in sketches]
    for row, one in enumerate(sketches):
        for column, other in enumerate(sketches[: row + 1]):
            cosines[row][column] = cosines[column][row] = cosine(one, other)
    return Likeness(cosines, len(sketches[0]) ** -0.5 if sketches else math.nan)


def _inner(one: Sketch, other: Sketch) -> float:
    total: float = sum(map(mul, one, other))
    return total
