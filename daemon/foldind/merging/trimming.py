"""Trimming a task vector by the magnitude of its elements, of one tensor at a time."""

import torch
from torch import Tensor


def largest(task_vector: Tensor, density: float) -> Tensor:
    """Return a task vector with all but its largest elements at zero; at least one is left.

    Args:
      task_vector: of a whole tensor, float32.
      density: share of the elements that are left, in (0, 1].
    """
    return between(task_vector, density, 0.0)


def between(task_vector: Tensor, density: float, outliers: float) -> Tensor:
    """Return a task vector with its smallest and its very largest elements at zero.

    Of elements of one magnitude at either end, all are left.

    Args:
      task_vector: of a whole tensor, float32.
      density: share of the elements that are left, in (0, 1]; at least one is.
      outliers: share of the elements, the largest, that are taken out; less where the density leaves no room.
    """
    elements = task_vector.numel()
    kept = max(1, int(density * elements))
    top = min(int(outliers * elements), elements - kept)
    bottom = elements - kept - top
    if elements in (0, kept):
        return task_vector
    magnitudes = task_vector.abs()
    left = torch.ones_like(magnitudes, dtype=torch.bool)
    if bottom:
        left &= magnitudes >= _smallest(magnitudes, bottom + 1)
    if top:
        left &= magnitudes <= _smallest(magnitudes, elements - top)
    return torch.where(left, task_vector, 0.0)


def _smallest(magnitudes: Tensor, rank: int) -> Tensor:
    return magnitudes.flatten().kthvalue(rank).values
