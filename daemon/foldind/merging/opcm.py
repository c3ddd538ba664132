"""Orthogonal projection-based continual merging (OPCM), in accumulated form.

    fold:     S_t = S_{t-1} + P(tau_t; S_{t-1})
    rescale:  lambda_t = ||S_t|| / mean_i ||tau_i||
    publish:  theta_t = theta_0 + S_t / lambda_t

Source: Tang et al., "Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual Model
Merging", NeurIPS 2025, Algorithm 1. The paper rescales the merged task vector at every step; keeping the sum and one
divisor is the same algebra and never compounds rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from foldind.merging.backend import TORCH, Backend
from foldind.merging.basis import Basis, decompose
from foldind.merging.norm import frobenius_inner, frobenius_norm
from foldind.merging.rule import Folded, Record, Rule

CrossBlocks = Literal["keep", "drop"]
Projection = Literal["exact", "leading"]
MatMul = Callable[[Tensor, Tensor], Tensor]

CANCELLED = 1e-6
"""An accumulated norm at or below this share of the mean task-vector norm counts as zero."""


def opcm(
    alpha: float = 0.5,
    cross_blocks: CrossBlocks = "keep",
    projection: Projection = "exact",
    backend: Backend = TORCH,
) -> Rule:
    """Return the OPCM rule.

    Args:
      alpha: share of the singular-value mass of what is merged that counts as taken, in [0, 1).
      cross_blocks: `keep` leaves the blocks between taken and free directions in the update, as the authors' code
        does; `drop` removes them, as the paper's formula does.
      projection: `exact` as the authors do it; `leading` needs the taken directions only, see `project_leading`.
      backend: whose linear algebra computes it.

    Raises:
      ValueError: a setting is out of range.
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be at least 0 and below 1, not {alpha}")
    if cross_blocks not in ("keep", "drop"):
        raise ValueError(f"cross_blocks must be 'keep' or 'drop', not {cross_blocks!r}")
    if projection not in ("exact", "leading"):
        raise ValueError(f"projection must be 'exact' or 'leading', not {projection!r}")

    leading = projection == "leading"
    return Rule(
        "opcm",
        partial(decompose, alpha=alpha, leading=leading, backend=backend),
        partial(fold, cross_blocks=cross_blocks, leading=leading, matmul=backend.matmul),
        divisor,
        publish,
    )


def fold(
    accumulated: Tensor,
    task_vector: Tensor,
    basis: Basis | None,
    cross_blocks: CrossBlocks = "keep",
    *,
    leading: bool = False,
    matmul: MatMul = torch.matmul,
) -> Folded:
    """Return S_t = S_{t-1} + P(tau_t), by `project_leading` or by `project`; without a basis P is the identity."""
    if basis is None:
        return Folded(accumulated + task_vector, 0.0)
    if leading:
        projected, removed_squared = project_leading(task_vector, accumulated, basis, cross_blocks, matmul)
    else:
        projected, removed_squared = project(task_vector, basis, cross_blocks, matmul)
    return Folded(projected.add_(accumulated), removed_squared)


def project(
    task_vector: Tensor, basis: Basis, cross_blocks: CrossBlocks = "keep", matmul: MatMul = torch.matmul
) -> Folded:
    """Take out of a task vector what collides with the merged matrix S whose basis is given.

    With the first r directions of U and V taken, the r x r block and the rest of the diagonal of U^T tau V go:

        P(tau) = tau - U_r (U_r^T tau V_r) V_r^T - sum_{i >= r} (u_i^T tau v_i) u_i v_i^T

    so that <P(tau), S>_F = 0. With `drop`, the first part is (I - U_r U_r^T) tau (I - V_r V_r^T) instead.

    Args:
      task_vector: tau, (m, n) float32.
      basis: of S, (m, n), with all singular vectors.
      cross_blocks: see `opcm`.
      matmul: computes the products.

    Returns:
      P(tau), (m, n) float32, and the squared norm of what was removed.

    Source: Tang et al. 2025, equations 4 and 5.
    """
    left, right, r = basis.left, basis.right, basis.split_rank
    rotated = matmul(left.mT, task_vector)  # U^T tau, (q, n)
    diagonal = torch.linalg.vecdot(rotated[r:], right[r:])  # (q - r,)
    taken = _taken(task_vector, basis, rotated[:r], cross_blocks, matmul)
    rotated[:r] = taken.rows
    torch.mul(diagonal[:, None], right[r:], out=rotated[r:])
    removed = matmul(left, rotated)
    if taken.columns is not None:
        removed += matmul(taken.columns, right[:r])
    return Folded(torch.sub(task_vector, removed, out=removed), taken.squared + frobenius_norm(diagonal) ** 2)


def project_leading(
    task_vector: Tensor,
    accumulated: Tensor,
    basis: Basis,
    cross_blocks: CrossBlocks = "keep",
    matmul: MatMul = torch.matmul,
) -> Folded:
    """As `project`, but beyond the first r directions the update is made orthogonal to S once, and not pair by pair.

    With S' = S - U_r diag(sigma_r) V_r^T, the rest of S, the diagonal beyond r is replaced:

        P(tau) = tau - U_r (U_r^T tau V_r) V_r^T - (<tau, S'> / ||S'||^2) S'

    so that <P(tau), S>_F = 0 all the same. It needs a fraction of the products and of the basis, and keeps more of tau.
    S' is a difference: its error is about 1e-7 ||S|| / ||S'||.

    Args:
      task_vector: tau, (m, n) float32.
      accumulated: S, (m, n) float32.
      basis: of S, with the leading singular vectors at the least.
      cross_blocks: see `opcm`.
      matmul: computes the products.

    Returns:
      As `project`.
    """
    r = basis.split_rank
    left, right = basis.left[:, :r], basis.right[:r]
    rotated = matmul(left.mT, task_vector)  # U_r^T tau, (r, n)
    block_diagonal = torch.linalg.vecdot(rotated, right).double()  # (r,)
    rest_squared = float(basis.singular_values[r:].square().sum())
    inner = frobenius_inner(task_vector, accumulated) - float(torch.dot(basis.singular_values[:r], block_diagonal))
    share = inner / rest_squared if rest_squared else 0.0
    taken = _taken(task_vector, basis, rotated, cross_blocks, matmul)
    rows = taken.rows - share * basis.singular_values[:r, None].float() * right
    removed = matmul(left, rows).add_(accumulated, alpha=share)
    if taken.columns is not None:
        removed += matmul(taken.columns, right)
    return Folded(torch.sub(task_vector, removed, out=removed), taken.squared + share**2 * rest_squared)


class _Taken(NamedTuple):
    """What is removed of the taken directions: left[:, :r] @ rows + columns @ right[:r]."""

    rows: Tensor
    """(r, n)."""
    columns: Tensor | None
    """(m, r), orthogonal to U_r; None: nothing."""
    squared: float
    """Its squared norm."""


def _taken(task_vector: Tensor, basis: Basis, rotated: Tensor, cross_blocks: CrossBlocks, matmul: MatMul) -> _Taken:
    r = basis.split_rank
    right = basis.right[:r]
    block = matmul(rotated, right.mT)  # U_r^T tau V_r, (r, r)
    if cross_blocks == "keep":
        return _Taken(matmul(block, right), None, frobenius_norm(block) ** 2)
    columns = matmul(task_vector, right.mT) - matmul(basis.left[:, :r], block)
    return _Taken(rotated, columns, frobenius_norm(rotated) ** 2 + frobenius_norm(columns) ** 2)


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
