"""How alike the submissions are that were merged last."""

from dataclasses import dataclass
from functools import lru_cache

from foldind.state.ledger import Ledger
from foldind.state.sketches import Likeness, Sketches, likeness

SHOWN = 16


@dataclass(frozen=True)
class Alike:
    """Submissions, the oldest first, and the cosines of their task vectors."""

    names: tuple[tuple[int, str], ...]
    """The version that first contains each, and what it is called."""
    likeness: Likeness


class Likenesses:
    """Compares sketches, and remembers the last comparison; blocks on the disk."""

    def __init__(self, sketches: Sketches, ledger: Ledger):
        self._sketches = sketches
        self._ledger = ledger
        self._of = lru_cache(1)(self._compare)

    def newest(self) -> Alike:
        """Return how alike the last SHOWN are that are merged and have a sketch."""
        return self._of(tuple(reversed(self._sketches.newest(SHOWN))))

    def _compare(self, submission_ids: tuple[str, ...]) -> Alike:
        submissions = [self._ledger.get(submission_id) for submission_id in submission_ids]
        names = tuple((submission.version, submission.name or submission.id) for submission in submissions)
        return Alike(names, likeness(list(self._sketches.of(submission_ids).values())))
