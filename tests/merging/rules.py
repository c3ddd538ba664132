"""Every merge rule with every way in which it can publish."""

from typing import NamedTuple

from foldind.merging.catalog import CATALOG, PUBLICATIONS
from foldind.merging.registry import make_rule
from foldind.merging.rule import Rule


class Combination(NamedTuple):
    """A rule and a publication, by their names."""

    rule: str
    publication: str

    def make(self, **options: float | str) -> Rule:
        """Return the rule; what is not given has its default."""
        return make_rule(self.rule, options, self.publication)

    def __str__(self) -> str:
        return f"{self.rule}+{self.publication}"


COMBINATIONS = tuple(
    Combination(name, publication)
    for name, entry in CATALOG.items()
    for publication in (PUBLICATIONS if entry.own is None else (entry.publication,))
)

ORDERED = frozenset({"opcm", "foldin"})
"""What a fold of these does depends on what was folded before."""

IRREVERSIBLE = frozenset({"opcm", "foldin", "magmax"})
"""A fold of these cannot be undone."""

RANDOM = frozenset({"dare"})
