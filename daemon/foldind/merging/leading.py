"""The leading part of a matrix: its best approximation of a given rank, from its rows.

Source: Eckart and Young, "The approximation of one matrix by another of lower rank", 1936.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from foldind.merging.backend import TORCH, Backend
from foldind.merging.basis import SmallSide, large_side_rows, right_side, settle_lengths
from foldind.merging.rule import Factored

_TOLERANCE = 1e-6
"""Singular values below this share of the largest are left out: the Gram matrix does not tell them from rounding."""


def leading_part(chunks: Callable[[], Iterable[Tensor]], rank: int, backend: Backend = TORCH) -> Factored:
    """Return the leading singular triplets of a matrix that is not wider than tall; fewer if its rank is lower.

    Args:
      chunks: the rows of it, (c, n) float32 each, in order; asked for twice, or three times.
      rank: how many triplets, at the most.
      backend: whose linear algebra computes it.

    Raises:
      ValueError, DecompositionError: as `basis.decompose`.
    """
    singular_values, vectors = right_side(chunks, backend, weak=False)
    kept = min(rank, int((singular_values > _TOLERANCE * singular_values[0]).sum()))
    singular_values, vectors = singular_values[:kept], vectors[:, :kept]
    side = SmallSide(singular_values, vectors, vectors / singular_values, 0)
    squared, parts = torch.zeros(kept, dtype=torch.float64), []
    for chunk in chunks():
        rows = large_side_rows(chunk, side, backend)
        squared += rows.square().sum(0)
        parts.append(rows.float())
    singular_values, lengths = settle_lengths(side, squared)
    return Factored(torch.cat(parts).div_(lengths), singular_values, vectors.mT.float())
