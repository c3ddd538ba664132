"""Figures over all submissions, for those who watch the daemon. Methods block on the disk."""

import threading
from collections import Counter
from collections.abc import Mapping

from foldind.state.database import AT_GATE, Database
from foldind.state.records import SubmissionState


class Census:
    """Counts of submissions, read from the ledger."""

    def __init__(self, database: Database):
        self._database = database
        self._counting = threading.Lock()
        self._counted = 0
        self._transitions: Counter[SubmissionState] = Counter()

    def submissions(self) -> Mapping[SubmissionState, int]:
        """Return how many submissions are in each state."""
        counts = dict.fromkeys(SubmissionState, 0)
        for state, count in self._database.query("SELECT state, count(*) FROM submissions GROUP BY state"):
            counts[SubmissionState(state)] = count
        return counts

    def queued_since(self) -> float | None:
        """Return when the submission that waits longest was queued, in seconds since the epoch; None: none waits."""
        found = self._database.query("SELECT min(updated_at) FROM submissions WHERE state = ?", SubmissionState.QUEUED)[
            0
        ][0]
        return None if found is None else float(found)

    def gate_waiting(self) -> int:
        """Return how many versions wait for the gate or are at it."""
        return int(self._database.query(f"SELECT count(*) FROM versions WHERE {AT_GATE}")[0][0])

    def transitions(self) -> Mapping[SubmissionState, int]:
        """Return how often submissions came into each state, since the state folder was made.

        Each event is counted once in the life of this object. None that ends a submission is ever removed.
        """
        with self._counting:
            for state, count, last in self._database.query(
                "SELECT state, count(*), max(number) FROM events WHERE number > ? GROUP BY state", self._counted
            ):
                self._transitions[SubmissionState(state)] += count
                self._counted = max(self._counted, last)
            return {state: self._transitions[state] for state in SubmissionState}
