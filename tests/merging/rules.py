"""Every merge rule with every way in which it can publish."""

from typing import NamedTuple

import torch
from foldind.merging.catalog import CATALOG, PUBLICATIONS
from foldind.merging.registry import make_rule
from foldind.merging.rule import Rule
from torch import Generator, Tensor


class Combination(NamedTuple):
    """A rule and a publication, by their names."""

    rule: str
    publication: str

    def make(self, **options: float | str) -> Rule:
        """Return the rule; what is not given has its default."""
        return make_rule(self.rule, options, self.publication)

    def __str__(self) -> str:
        return f"{self.rule}+{self.publication}"


PLAIN = tuple(name for name, entry in CATALOG.items() if not entry.statistics)
"""Rules that take checkpoints as they are."""


def statistics_of(rule: str, shape: tuple[int, ...], matrix: bool, seed: int) -> Tensor | None:
    """What a submission says of a tensor, if the rule asks for it."""
    generator = Generator().manual_seed(seed)
    match CATALOG[rule].statistics:
        case "like":
            return 0.5 + torch.rand(shape, generator=generator)
        case "gram" if matrix:
            inputs = torch.randn(4 * shape[-1], shape[-1], generator=generator)
            return inputs.mT @ inputs
    return None


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
