"""Orthogonal projection-based continual merging (OPCM), in accumulated form.

    fold:     S_t = S_{t-1} + P(tau_t; S_{t-1})
    rescale:  lambda_t = ||S_t|| / mean_i ||tau_i||
    publish:  theta_t = theta_0 + S_t / lambda_t

Source: Tang et al., "Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual Model
Merging", NeurIPS 2025, Algorithm 1. The paper rescales the merged task vector at every step; keeping the sum and one
divisor is the same algebra and never compounds rounding.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from foldind.merging.basis import Basis, decompose
from foldind.merging.norm import frobenius_norm
from foldind.merging.rule import Folded, Record, Rule

CrossBlocks = Literal["keep", "drop"]

CANCELLED = 1e-6
"""An accumulated norm at or below this share of the mean task-vector norm counts as zero."""


def opcm(alpha: float = 0.5, cross_blocks: CrossBlocks = "keep") -> Rule:
    """Return the OPCM rule.

    Args:
      alpha: share of the singular-value mass of what is merged that counts as taken, in [0, 1).
      cross_blocks: `keep` leaves the blocks between taken and free directions in the update, as the authors' code
        does; `drop` removes them, as the paper's formula does.

    Raises:
      ValueError: a setting is out of range.
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be at least 0 and below 1, not {alpha}")
    if cross_blocks not in ("keep", "drop"):
        raise ValueError(f"cross_blocks must be 'keep' or 'drop', not {cross_blocks!r}")
    return Rule("opcm", partial(decompose, alpha=alpha), partial(fold, cross_blocks=cross_blocks), divisor, publish)


def project(task_vector: Tensor, basis: Basis, cross_blocks: CrossBlocks = "keep") -> Folded:
    """Take out of a task vector what collides with the merged matrix S whose basis is given.

    With the first r directions of U and V taken, the r x r block and the rest of the diagonal of U^T tau V go:

        P(tau) = tau - U_r (U_r^T tau V_r) V_r^T - sum_{i >= r} (u_i^T tau v_i) u_i v_i^T

    so that <P(tau), S>_F = 0. With `drop`, the first part is (I - U_r U_r^T) tau (I - V_r V_r^T) instead.

    Args:
      task_vector: tau, (m, n) float32.
      basis: of S, (m, n).
      cross_blocks: see `opcm`.

    Returns:
      P(tau), (m, n) float32, and the squared norm of what was removed.

    Source: Tang et al. 2025, equations 4 and 5.
    """
    left, right, r = basis.left, basis.right, basis.split_rank
    rotated = left.mT @ task_vector  # U^T tau, (q, n)
    block = rotated[:r] @ right[:, :r]  # (r, r)
    diagonal = (rotated[r:] * right[:, r:].mT).sum(1)  # (q - r,)
    removed_squared = frobenius_norm(block) ** 2 + frobenius_norm(diagonal) ** 2
    taken_rows = rotated[:r] if cross_blocks == "drop" else block @ right[:, :r].mT
    removed = torch.cat([taken_rows, diagonal[:, None] * right[:, r:].mT])  # in the rows of U^T, (q, n)
    projected = torch.addmm(task_vector, left, removed, alpha=-1)
    if cross_blocks == "drop":
        taken_columns = task_vector @ right[:, :r] - left[:, :r] @ block  # (m, r), the rows of U_r already gone
        projected = projected.addmm_(taken_columns, right[:, :r].mT, alpha=-1)
        removed_squared += (
            frobenius_norm(rotated[:r]) ** 2 - frobenius_norm(block) ** 2 + frobenius_norm(taken_columns) ** 2
        )
    return Folded(projected, removed_squared)


def fold(accumulated: Tensor, task_vector: Tensor, basis: Basis | None, cross_blocks: CrossBlocks = "keep") -> Folded:
    """Return S_t = S_{t-1} + P(tau_t); without a basis P is the identity."""
    if basis is None:
        return Folded(accumulated + task_vector, 0.0)
    projected, removed_squared = project(task_vector, basis, cross_blocks)
    return Folded(projected.add_(accumulated), removed_squared)


def divisor(record: Record) -> float:
    """Return lambda_t = ||S_t|| / n_t, which gives the merged task vector the mean norm of those merged.

    1 when everything merged so far cancels out, for then S is rounding error and is not to be blown up.
    """
    if record.accumulated_norm <= CANCELLED * record.mean_task_vector_norm:
        return 1.0
    return record.accumulated_norm / record.mean_task_vector_norm


def publish(base: Tensor, accumulated: Tensor, lambda_: float) -> Tensor:
    """Return theta_0 + S_t / lambda_t in the base's dtype, rounded once, to nearest even."""
    return (accumulated / lambda_).add_(base).to(base.dtype)
