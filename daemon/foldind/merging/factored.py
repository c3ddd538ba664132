"""OPCM for what is of low rank: neither the accumulated matrix nor the task vector is ever multiplied out.

S = U diag(sigma) V^T is kept as these factors, and a task vector comes as tau = B A. In orthonormal bases of the
columns of [U, B] and of the rows of [V^T; A], both are matrices of q + r by q + r, and so is everything that a fold
does. It costs O((m + n) (q + r)^2), where the products of m x n matrices cost O(m n min(m, n)).

Source: Brand, "Fast low-rank modifications of the thin singular value decomposition", 2006.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from foldind.merging.basis import RANK_TOLERANCE, split_rank
from foldind.merging.rule import Factored, FoldedFactored, LowRank


class Projection(NamedTuple):
    """What is taken out of a task vector; as the arguments of `opcm.opcm`."""

    alpha: float
    drop_cross_blocks: bool
    leading: bool


def fold_factored(
    projection: Projection, accumulated: Factored, task_vector: LowRank, *, project: bool, max_rank: int
) -> FoldedFactored:
    """Return S + P(tau), of low rank like both, computed in float64.

    Args:
      projection: see the class.
      accumulated: S, (m, n); of rank 0 before the first fold.
      task_vector: tau, (m, n).
      project: whether the tensor is projected; else P is the identity.
      max_rank: of the result; what is beyond is dropped. 0: all is kept.
    """
    q = len(accumulated.singular_values)
    columns, left_part = torch.linalg.qr(torch.cat([accumulated.left, task_vector.up], 1).double())
    rows, right_part = torch.linalg.qr(torch.cat([accumulated.right, task_vector.down]).double().mT)
    merged = left_part[:, :q] * accumulated.singular_values @ right_part[:, :q].mT
    update = left_part[:, q:] @ right_part[:, q:].mT
    # In the complete singular bases of S, S is diagonal, and what a projection removes are entries.
    left, singular_values, right = torch.linalg.svd(merged, full_matrices=True)
    singular_values[q:] = 0
    rotated = left.mT @ update @ right.mT
    task_vector_norm = float(torch.linalg.vector_norm(rotated))
    taken = split_rank(singular_values[:q], projection.alpha) if project else 0
    removed_squared = _project(rotated, singular_values[:q], taken, projection) if project and q else 0.0
    rotated[: len(singular_values), : len(singular_values)].diagonal().add_(singular_values)

    inner_left, total, inner_right = torch.linalg.svd(rotated, full_matrices=False)
    # Where the sum is smaller than S was, it still has the rounding of that: this is no direction of it.
    largest = torch.cat([total[:1], singular_values[:1]]).amax() if len(total) else 0
    rank = int((total > RANK_TOLERANCE * largest).sum())
    kept = min(rank, max_rank or rank)
    folded = Factored(
        (columns @ (left @ inner_left[:, :kept])).float(),
        total[:kept],
        (inner_right[:kept] @ right @ rows.mT).float(),
    )
    return FoldedFactored(folded, task_vector_norm, removed_squared, taken, float(total[kept:].square().sum()))


def _project(rotated: Tensor, singular_values: Tensor, r: int, projection: Projection) -> float:
    """Remove from a task vector in S's bases, in place, what collides with S; return the squared norm of that."""
    before = rotated.clone()
    q = len(singular_values)
    if projection.drop_cross_blocks:
        rotated[:r] = 0
        rotated[:, :r] = 0
    rotated[:r, :r] = 0
    rest = rotated[r:q, r:q].diagonal()
    if projection.leading:
        share = torch.dot(rest, singular_values[r:]) / singular_values[r:].square().sum()
        rest.sub_(share * singular_values[r:])
    else:
        rest.zero_()
    return float((before - rotated).square().sum())
