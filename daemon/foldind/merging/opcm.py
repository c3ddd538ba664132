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
from typing import NamedTuple

import torch
from torch import Tensor

from foldind.merging.additive import task_vector_sum
from foldind.merging.backend import TORCH, Backend
from foldind.merging.basis import Basis
from foldind.merging.catalog import CrossBlocks, ProjectionKind
from foldind.merging.factored import Projection as FactoredProjection
from foldind.merging.factored import fold_factored
from foldind.merging.norm import frobenius_inner, frobenius_norm
from foldind.merging.rule import Accumulation, Folded, Overlap, Projection, Removal

MatMul = Callable[[Tensor, Tensor], Tensor]


def opcm(
    alpha: float = 0.5,
    cross_blocks: CrossBlocks = "keep",
    projection: ProjectionKind = "exact",
    backend: Backend = TORCH,
) -> Accumulation:
    """Return the accumulation of OPCM: linear layers are projected, everything else is summed.

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

    settings = _Settings(cross_blocks, projection == "leading", backend.matmul)
    return task_vector_sum()._replace(
        take_out=None,  # what a fold removed depends on what was there
        projection=Projection(
            partial(_overlap, settings),
            partial(_removal, settings),
            partial(_fold, settings),
        ),
        fold_factored=partial(fold_factored, FactoredProjection(alpha, cross_blocks == "drop", settings.leading)),
    )


class _Settings(NamedTuple):
    cross_blocks: CrossBlocks
    leading: bool
    matmul: MatMul


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
    settings = _Settings(cross_blocks, leading=False, matmul=matmul)
    return _project(settings, task_vector, None, basis)


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
    settings = _Settings(cross_blocks, leading=True, matmul=matmul)
    return _project(settings, task_vector, accumulated, basis)


# Both in three steps, of which the first and the last take a matrix in row blocks as well as whole. What is removed is
#     U rows + columns V_r^T + share S
# where rows and share follow from U^T tau and <tau, S>, and these are sums over the rows of tau.


def _project(settings: _Settings, task_vector: Tensor, accumulated: Tensor | None, basis: Basis) -> Folded:
    removal = _removal(settings, _overlap(settings, accumulated, task_vector, basis), basis)
    projected = _subtract(settings, accumulated, task_vector, basis, removal)
    return projected._replace(removed_squared=projected.removed_squared + removal.squared)


def _fold(
    settings: _Settings, accumulated: Tensor, task_vector: Tensor, basis: Basis, removal: Removal | None = None
) -> Folded:
    if removal is None:
        projected = _project(settings, task_vector, accumulated, basis)
    else:
        projected = _subtract(settings, accumulated, task_vector, basis, removal)
    return projected._replace(accumulated=projected.accumulated.add_(accumulated))


def _overlap(settings: _Settings, accumulated: Tensor | None, task_vector: Tensor, basis: Basis) -> Overlap:
    if not settings.leading:
        return Overlap(settings.matmul(basis.left.mT, task_vector), 0.0)
    assert accumulated is not None
    left = basis.left[:, : basis.split_rank]
    return Overlap(settings.matmul(left.mT, task_vector), frobenius_inner(task_vector, accumulated))


def _removal(settings: _Settings, overlap: Overlap, basis: Basis) -> Removal:
    r, rotated, matmul = basis.split_rank, overlap.rotated, settings.matmul
    taken, rest = basis.right[:r], basis.right[r:]
    block = matmul(rotated[:r], taken.mT)  # U_r^T tau V_r, (r, r)
    rows = matmul(block, taken) if settings.cross_blocks == "keep" else rotated[:r]
    squared = frobenius_norm(block if settings.cross_blocks == "keep" else rows) ** 2
    if settings.leading:
        singular_values = basis.singular_values[:r]
        rest_squared = float(basis.singular_values[r:].square().sum())
        inner = overlap.inner - float(torch.dot(singular_values, block.diagonal().double()))
        share = inner / rest_squared if rest_squared else 0.0
        return Removal(
            rows - share * singular_values[:, None].float() * taken, block, share, squared + share**2 * rest_squared
        )
    diagonal = torch.linalg.vecdot(rotated[r:], rest)  # (q - r,)
    rotated[:r] = rows
    torch.mul(diagonal[:, None], rest, out=rotated[r:])
    return Removal(rotated, block, 0.0, squared + frobenius_norm(diagonal) ** 2)


def _subtract(
    settings: _Settings, accumulated: Tensor | None, task_vector: Tensor, basis: Basis, removal: Removal
) -> Folded:
    r, matmul = basis.split_rank, settings.matmul
    removed = matmul(basis.left[:, : len(removal.rows)], removal.rows)
    squared = 0.0
    if removal.share:
        assert accumulated is not None
        removed.add_(accumulated, alpha=removal.share)
    if settings.cross_blocks == "drop":
        columns = matmul(task_vector, basis.right[:r].mT) - matmul(basis.left[:, :r], removal.block)
        removed += matmul(columns, basis.right[:r])
        squared = frobenius_norm(columns) ** 2
    return Folded(torch.sub(task_vector, removed, out=removed), squared)
