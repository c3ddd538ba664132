"""Fisher-weighted averaging: the mean of the task vectors, each element weighted by how much its submission needs it.

    fold:     weight += F,   S += F * tau,    F = max(diagonal Fisher of the submission, floor)
    publish:  S / weight

elementwise. The floor makes it the plain mean where every Fisher is at or below it, all zero say; without one, elements
to which nobody gave weight stay those of the base. A submission that brings no Fisher of a tensor gives it no weight.

Source: Matena & Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022. The floor is
in the authors' code.
"""

import math

import torch
from torch import Tensor

from foldind.merging.additive import RESIDUE, additive
from foldind.merging.catalog import ACCUMULATED
from foldind.merging.record import Record, TensorRecord
from foldind.merging.rule import Accumulation, Publication, State, Step

WEIGHT = "weight"
"""Slot of the sum of the Fishers, of the shape of the tensor."""

LARGEST = 1e30
"""Of an element of a Fisher or a Gram matrix: sums of more would leave the range of float32."""


def accumulation(floor: float = 1e-6) -> Accumulation:
    """Return what Fisher averaging keeps.

    Args:
      floor: the least weight that a submission gives an element, at least 0.

    Raises:
      ValueError: it is out of range.
    """
    if not 0 <= floor < math.inf:
        raise ValueError(f"floor is at least 0, not {floor}")

    def contribution(task_vector: Tensor, step: Step) -> State:
        if step.statistics is None:
            return dict.fromkeys((ACCUMULATED, WEIGHT), torch.zeros_like(task_vector, dtype=torch.float64))
        weight = step.statistics.double().clamp_(min=floor)
        return {ACCUMULATED: weight * task_vector, WEIGHT: weight}

    def settle(before: State, after: State) -> State:
        # Whoever has statistics of a tensor weighs at least the floor in it.
        nobody = after[WEIGHT] <= (floor / 2 if floor else RESIDUE * before[WEIGHT])
        return {slot: values.masked_fill(nobody, 0) for slot, values in after.items()}

    return additive(contribution, settle=settle)


def publication() -> Publication:
    """Return how Fisher averaging publishes."""

    def update(state: State, tensor: TensorRecord, record: Record) -> Tensor:
        weight = state[WEIGHT]
        return torch.where(weight > 0, state[ACCUMULATED] / weight, 0.0).float()

    return Publication(update)


def is_fisher(values: Tensor) -> bool:
    """Tell whether finite values can be a diagonal Fisher: none is negative, or too large to be summed."""
    return bool(((values >= 0) & (values <= LARGEST)).all())
