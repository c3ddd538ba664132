"""DARE: drop elements of each task vector at random, and stretch the rest, so that the expected sum is the same.

    S_t = S_{t-1} + m * tau_t / density,    m ~ Bernoulli(density), drawn anew for every submission and tensor

Source: Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch", ICML
2024.
"""

import torch
from torch import Tensor

from foldind.merging.additive import additive
from foldind.merging.catalog import ACCUMULATED
from foldind.merging.rule import Accumulation, State, Step


def accumulation(density: float = 0.5) -> Accumulation:
    """Return what DARE keeps.

    Args:
      density: probability with which an element is kept, in (0, 1].

    Raises:
      ValueError: it is out of range.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is above 0 and at most 1, not {density}")

    def contribution(task_vector: Tensor, step: Step) -> State:
        mask = torch.empty_like(task_vector)
        mask.bernoulli_(density, generator=torch.Generator().manual_seed(step.seed))
        return {ACCUMULATED: mask.mul_(task_vector).div_(density)}

    return additive(contribution, removes=True)
