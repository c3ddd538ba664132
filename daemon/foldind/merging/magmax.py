"""MagMax: of all task vectors, every element from the one in which it is largest.

Of a positive and a negative element of one magnitude the positive one is taken, whichever came first.

Source: Marczak et al., "MagMax: Leveraging Model Merging for Seamless Continual Learning", ECCV 2024.
"""

import torch
from torch import Tensor

from foldind.merging.catalog import ACCUMULATED
from foldind.merging.norm import frobenius_norm
from foldind.merging.rule import Accumulation, FoldedState, State, Step


def accumulation() -> Accumulation:
    """Return what MagMax keeps."""

    def fold(state: State, task_vector: Tensor, step: Step) -> FoldedState:
        before = state[ACCUMULATED]
        magnitude, magnitude_before = task_vector.abs(), before.abs()
        larger = (magnitude > magnitude_before) | ((magnitude == magnitude_before) & (task_vector > before))
        return FoldedState(
            {ACCUMULATED: torch.where(larger, task_vector, before)},
            frobenius_norm(torch.where(larger, 0.0, task_vector)) ** 2,
        )

    return Accumulation(fold)
