"""TIES: trim each task vector, elect a sign for every element, and average those that agree with it.

    tau'  = tau with all but its largest elements at zero
    sign  = sign of sum_i tau'_i
    tau_m = factor * mean of the tau'_i that have this sign

Sums and counts of the positive and of the negative parts say all that is needed. Where both cancel, rounding elects.

Source: Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023.
"""

import torch
from torch import Tensor

from foldind.merging.additive import additive
from foldind.merging.catalog import ACCUMULATED
from foldind.merging.record import Record, TensorRecord
from foldind.merging.rule import Accumulation, Publication, State, Step
from foldind.merging.trimming import largest

POSITIVE, POSITIVES, NEGATIVES = "positive", "positives", "negatives"
"""Slots: the sum of the positive parts, and how many there are of either sign."""


def accumulation(density: float = 0.2) -> Accumulation:
    """Return what TIES keeps.

    Args:
      density: share of the elements of each tensor that are not trimmed, in (0, 1].

    Raises:
      ValueError: it is out of range.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is above 0 and at most 1, not {density}")

    def contribution(task_vector: Tensor, step: Step) -> State:
        trimmed = largest(task_vector, density)
        return {
            ACCUMULATED: trimmed,
            POSITIVE: trimmed.clamp(min=0),
            POSITIVES: (trimmed > 0).float(),
            NEGATIVES: (trimmed < 0).float(),
        }

    return additive(contribution, whole=True, removes=True)


def publication(factor: float = 1.0) -> Publication:
    """Return how TIES publishes.

    Args:
      factor: of the mean, positive.
    """

    def update(state: State, tensor: TensorRecord, record: Record) -> Tensor:
        total, positive = state[ACCUMULATED], state[POSITIVE]
        elected_positive = total >= 0
        mass = torch.where(elected_positive, positive, total - positive)
        count = torch.where(elected_positive, state[POSITIVES], state[NEGATIVES])
        return mass.mul_(factor).div_(count.clamp_(min=1))

    return Publication(update)
