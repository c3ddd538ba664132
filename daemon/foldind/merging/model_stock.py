"""Model Stock: the mean of the task vectors, shortened by how much they point apart.

    tau_m = t S / n,   t = n cos / (1 + (n - 1) cos),   cos = (||sum_i tau_i / ||tau_i|| ||^2 - n) / (n (n - 1))

cos is the mean cosine of two task vectors of a tensor; those that do not change it have no direction, and are left out.

Source: Jang et al., "Model Stock: All we need is just a few fine-tuned models", ECCV 2024.
"""

from torch import Tensor

from foldind.merging.additive import additive
from foldind.merging.catalog import ACCUMULATED
from foldind.merging.norm import frobenius_norm
from foldind.merging.record import Record, TensorRecord
from foldind.merging.rule import Accumulation, Publication, State, Step

DIRECTIONS = "directions"
"""Slot: the sum of the task vectors at unit length."""


def accumulation() -> Accumulation:
    """Return what Model Stock keeps."""

    def contribution(task_vector: Tensor, step: Step) -> State:
        length = frobenius_norm(task_vector)
        return {ACCUMULATED: task_vector, DIRECTIONS: task_vector / length if length else task_vector}

    return additive(contribution, whole=True)


def publication() -> Publication:
    """Return how Model Stock publishes."""

    def update(state: State, tensor: TensorRecord, record: Record) -> Tensor:
        n = tensor.submissions
        if n < 2:
            return state[ACCUMULATED].clone()
        cosine = (frobenius_norm(state[DIRECTIONS]) ** 2 - n) / (n * (n - 1))
        # Task vectors that point apart have a mean that points nowhere.
        ratio = max(0.0, n * cosine / (1 + (n - 1) * cosine)) if 1 + (n - 1) * cosine > 0 else 0.0
        return state[ACCUMULATED] * (ratio / n)

    return Publication(update, whole=True)
