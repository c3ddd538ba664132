"""The orthogonal basis of what is already merged: the thin SVD of one tensor of the accumulated state."""

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from foldind.merging.backend import LINALG_ERRORS, TORCH, Backend
from foldind.merging.norm import frobenius_norm

RANK_TOLERANCE = 2e-7
"""Singular values at or below this share of the largest count as zero.

Their singular vectors are arbitrary: float32 rounding of a sum of low-rank updates leaves about 5e-8. Real fine-tuned
weights have directions at 6e-7, and leaving one out costs 2e-2 of its tensor after seven folds.
"""

_GRAM_TOLERANCE = 1e-5
"""Singular values below this share of the largest lose too many digits when the matrix is squared."""

_CHUNK_ROWS = 1024
_CHUNK_ELEMENTS = 1024 * 1024


class DecompositionError(ArithmeticError):
    """No decomposition of a finite matrix converged."""


class Basis(NamedTuple):
    """Thin SVD of an (m, n) matrix of numerical rank q <= min(m, n): left @ diag(singular_values) @ right.

    Of the singular vectors, the first p are there: all (p = q), or those that count as taken (p = split_rank).
    """

    left: Tensor
    """U, (m, p) float32, orthonormal columns."""
    singular_values: Tensor
    """sigma, (q,) float64, descending, all above RANK_TOLERANCE * sigma_0."""
    right: Tensor
    """V^T, (p, n) float32, orthonormal rows."""
    split_rank: int
    """r, how many leading directions count as taken; 0 <= r < max(q, 1)."""


def split_rank(singular_values: Tensor, alpha: float) -> int:
    """Return how many leading directions carry at most alpha of the singular-value mass.

    That is the first index, from 0, at which cumsum(sigma) / sum(sigma) exceeds alpha; 0 for an empty spectrum.

    Args:
      singular_values: (q,), descending, positive.
      alpha: share in [0, 1).

    Raises:
      ValueError: alpha is out of range.

    Source: Tang et al. 2025, Algorithm 1.
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be at least 0 and below 1, not {alpha}")
    if len(singular_values) == 0:
        return 0
    mass = singular_values.double().cumsum(0)
    return min(int((mass <= alpha * mass[-1]).sum()), len(singular_values) - 1)


def decompose(matrix: Tensor, alpha: float, *, leading: bool = False, backend: Backend = TORCH) -> Basis:
    """Return the basis of a matrix, exact to float32.

    The Gram matrix of the small side is formed and diagonalised in float64: float32 would cost 1e-2 in error. Where
    weak directions count, the matrix itself is decomposed. A zero matrix has an empty basis.

    Args:
      matrix: (m, n) float32.
      alpha: share of the singular-value mass that counts as taken, in [0, 1).
      leading: whether the singular vectors that count as taken are enough.
      backend: whose linear algebra computes it.

    Raises:
      ValueError: the matrix is not finite, or alpha is out of range.
      DecompositionError: nothing converged.
    """
    if not math.isfinite(frobenius_norm(matrix)):
        raise ValueError("a matrix with NaN or infinite elements has no basis")
    singular_values, small_side = _small_side(matrix, backend)
    rank = int((singular_values > RANK_TOLERANCE * singular_values[0]).sum())
    singular_values = singular_values[:rank]
    kept = split_rank(singular_values, alpha) if leading else rank
    # Columns of length one but for the error of the singular values, which is then known.
    large_side, lengths = _large_side(matrix, small_side[:, :kept] / singular_values[:kept], backend)
    singular_values[:kept] *= lengths
    factors = (large_side, small_side[:, :kept].mT) if _is_tall(matrix) else (small_side[:, :kept], large_side)
    left, right = (factor.float().contiguous() for factor in factors)
    return Basis(left, singular_values, right, split_rank(singular_values, alpha) if not leading else kept)


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[0] >= matrix.shape[1]


def _chunks(matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield parts of the matrix in float64, of which all at once would be too much: (c, k), c along the large side."""
    large, small = max(matrix.shape), min(matrix.shape)
    step = max(_CHUNK_ROWS, _CHUNK_ELEMENTS // small)
    for first in range(0, large, step):
        part = slice(first, first + step)
        yield part, matrix[part].double() if _is_tall(matrix) else matrix[:, part].double().mT


def _small_side(matrix: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    """Return all singular values, descending, and the singular vectors of the small side in columns; float64."""
    with suppress(*LINALG_ERRORS):
        gram = torch.zeros(min(matrix.shape), min(matrix.shape), dtype=torch.float64)
        for _, chunk in _chunks(matrix):
            gram += backend.gram(chunk)
        eigenvalues, vectors = backend.eigh(gram)
        singular_values = eigenvalues.flip(0).clamp_(min=0).sqrt_()
        if _converged(singular_values, vectors) and not _has_weak(singular_values):
            return singular_values, vectors.flip(1)
    # Four times slower, and exact in weak directions too.
    with suppress(*LINALG_ERRORS):
        tall = matrix.double() if _is_tall(matrix) else matrix.mT.double()
        _, singular_values, right = torch.linalg.svd(tall, full_matrices=False)
        if _converged(singular_values, right):
            return singular_values, right.mT
    raise DecompositionError(f"neither eigh nor svd converged on a {tuple(matrix.shape)} matrix")


def _large_side(matrix: Tensor, small_side: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    """Return the singular vectors of the large side, of unit length, float32, and the length they came with, float64.

    They are the columns of U of a tall matrix, and the rows of V^T of a wide one.
    """
    tall = _is_tall(matrix)
    shape = (matrix.shape[0], small_side.shape[1]) if tall else (small_side.shape[1], matrix.shape[1])
    large_side, squared = torch.empty(shape), torch.zeros(small_side.shape[1], dtype=torch.float64)
    for part, chunk in _chunks(matrix):
        if tall:
            product = backend.matmul(chunk, small_side)
            large_side[part] = product
        else:
            product = backend.matmul(small_side.mT, chunk.mT)
            large_side[:, part] = product
        squared += product.square_().sum(0 if tall else 1)
    lengths = squared.sqrt_()
    return large_side.div_(lengths.float() if tall else lengths.float()[:, None]), lengths


def _has_weak(singular_values: Tensor) -> bool:
    # From half the tolerance on: what is above it may come out below.
    share = singular_values / singular_values[0]
    return bool(((share > RANK_TOLERANCE / 2) & (share < _GRAM_TOLERANCE)).any())


def _converged(*factors: Tensor) -> bool:
    return all(bool(torch.isfinite(factor).all()) for factor in factors)
