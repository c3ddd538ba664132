"""The orthogonal basis of what is already merged: the thin SVD of one tensor of the accumulated state."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from foldind.merging.backend import LINALG_ERRORS, TORCH, Backend

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


def above_rounding(basis: Basis, norm: float) -> Basis:
    """Return the directions of a basis that are no float32 rounding of a matrix which its own is the rest of.

    Args:
      basis: of the rest; all its singular vectors are there.
      norm: Frobenius norm of the larger matrix that something was subtracted from; 0 if there was none.
    """
    directions = int((basis.singular_values > RANK_TOLERANCE * norm).sum())
    return basis._replace(
        left=basis.left[:, :directions],
        singular_values=basis.singular_values[:directions],
        right=basis.right[:directions],
    )


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


class SmallSide(NamedTuple):
    """Half of a thin SVD: the singular values of a matrix, and the singular vectors of its small side, k long.

    The other half follows from it and the matrix, row by row of the large side.
    """

    singular_values: Tensor
    """(q,) float64, descending, as the Gram matrix has them."""
    vectors: Tensor
    """(k, p) float64, orthonormal columns."""
    scaled: Tensor
    """The same, divided by their singular values."""
    split_rank: int


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
    upright = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    side = small_side(lambda: _chunks(upright), alpha, leading=leading, backend=backend)
    kept = side.vectors.shape[1]
    tall = upright is matrix
    # In the layout that the basis has it in: the columns of U, or the rows of V^T.
    large_side = torch.empty(len(upright), kept) if tall else torch.empty(kept, len(upright)).mT
    squared, first = torch.zeros(kept, dtype=torch.float64), 0
    for chunk in _chunks(upright):
        rows = large_side_rows(chunk, side, backend)
        large_side[first : first + len(chunk)] = rows
        squared += rows.square_().sum(0)
        first += len(chunk)
    singular_values, lengths = settle_lengths(side, squared)
    large_side /= lengths
    factors = (large_side, side.vectors.mT) if tall else (side.vectors, large_side.mT)
    left, right = (factor.float().contiguous() for factor in factors)
    return Basis(left, singular_values, right, side.split_rank)


def small_side(
    chunks: Callable[[], Iterable[Tensor]], alpha: float, *, leading: bool = False, backend: Backend = TORCH
) -> SmallSide:
    """Return the singular values of a tall matrix and the right singular vectors, from its rows.

    Args:
      chunks: the rows of it, (c, k) float32 each, in order; asked for once, or twice.
      alpha: as in `decompose`, like what follows.
      leading: whether the singular vectors that count as taken are enough.
      backend: whose linear algebra computes it.

    Raises:
      ValueError, DecompositionError: as `decompose`.
    """
    singular_values, vectors = right_side(chunks, backend)
    rank = int((singular_values > RANK_TOLERANCE * singular_values[0]).sum())
    singular_values = singular_values[:rank]
    taken = split_rank(singular_values, alpha)
    kept = taken if leading else rank
    vectors = vectors[:, :kept]
    return SmallSide(singular_values, vectors, vectors / singular_values[:kept], taken)


def large_side_rows(rows: Tensor, side: SmallSide, backend: Backend = TORCH) -> Tensor:
    """Return rows of the left singular vectors of a tall matrix, (c, p) float64.

    The columns that they are of have a length of one but for the error of the singular values; see `settle_lengths`.

    Args:
      rows: of the matrix, (c, k) float32.
      side: of the matrix.
      backend: whose linear algebra computes it.
    """
    chunk = rows.double()
    if chunk.is_contiguous():
        return backend.matmul(chunk, side.scaled)
    return backend.matmul(side.scaled.mT, chunk.mT).mT  # it lies in columns, and so does the result


def settle_lengths(side: SmallSide, squared: Tensor) -> tuple[Tensor, Tensor]:
    """Return the singular values, (q,) float64, and what the columns of the large side are to be divided by.

    Args:
      side: of the matrix.
      squared: (p,) float64, sums of the squares of the columns that `large_side_rows` gave.
    """
    lengths = squared.sqrt()
    singular_values = side.singular_values.clone()
    singular_values[: len(lengths)] *= lengths  # the error is known now
    return singular_values, lengths.float()


def _chunks(matrix: Tensor) -> Iterator[Tensor]:
    """Yield parts of the rows, of which all at once would be too much in float64."""
    step = max(_CHUNK_ROWS, _CHUNK_ELEMENTS // matrix.shape[1])
    for first in range(0, len(matrix), step):
        yield matrix[first : first + step]


def right_side(
    chunks: Callable[[], Iterable[Tensor]], backend: Backend = TORCH, *, weak: bool = True
) -> tuple[Tensor, Tensor]:
    """Return all singular values of a tall matrix, descending, and the right singular vectors in columns; float64.

    Args:
      chunks: as in `small_side`, like what is raised.
      backend: whose linear algebra computes it.
      weak: whether those below 1e-5 of the largest are to be exact too.
    """
    gram = sum(backend.gram(chunk.double()) for chunk in chunks())
    assert isinstance(gram, Tensor)
    if not math.isfinite(float(gram.trace())):
        raise ValueError("a matrix with NaN or infinite elements has no basis")
    with suppress(*LINALG_ERRORS):
        eigenvalues, vectors = backend.eigh(gram)
        singular_values = eigenvalues.flip(0).clamp_(min=0).sqrt_()
        if _converged(singular_values, vectors) and not (weak and _has_weak(singular_values)):
            return singular_values, vectors.flip(1)
    # Slower, and exact in weak directions too: the triangle of a QR decomposition has what the Gram matrix has, and
    # does not square it.
    with suppress(*LINALG_ERRORS):
        triangle = torch.empty(0, gram.shape[1], dtype=torch.float64)
        for chunk in chunks():
            triangle = torch.linalg.qr(torch.cat([triangle, chunk.double()]), mode="r").R
        _, singular_values, right = torch.linalg.svd(triangle, full_matrices=False)
        if _converged(singular_values, right):
            return singular_values, right.mT
    raise DecompositionError(f"neither eigh nor svd converged on a matrix whose small side is {len(gram)}")


def _has_weak(singular_values: Tensor) -> bool:
    # From half the tolerance on: what is above it may come out below.
    share = singular_values / singular_values[0]
    return bool(((share > RANK_TOLERANCE / 2) & (share < _GRAM_TOLERANCE)).any())


def _converged(*factors: Tensor) -> bool:
    return all(bool(torch.isfinite(factor).all()) for factor in factors)
