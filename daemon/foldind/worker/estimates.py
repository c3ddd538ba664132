"""How many bytes of memory the steps of a fold and of a publication take at the most.

ordered.py compares these bounds with the memory budget. They count everything that a step reads, computes and returns,
except what does not grow with the tensor. Every bound is a sum of named terms. Names that share a line are equally
large, and are all in memory at the same time, or stand for something of this size that comes later.
"""

import math
from collections.abc import Sequence

from foldind.checkpoints.header import ITEM_BYTES
from foldind.merging.catalog import ACCUMULATED, Entry
from foldind.state.bases import basis_bytes
from foldind.worker.blocks import BLOCK_ELEMENTS, Block, FactoredMatrix, block_shape

_F32, _F64 = ITEM_BYTES["F32"], ITEM_BYTES["F64"]


def fold_bytes(part: Block | FactoredMatrix, rule: Entry) -> int:
    """Return what folding a part takes."""
    if isinstance(part, FactoredMatrix):
        return factored_fold_bytes(part.tensor.shape, part.rank)
    shape = block_shape(part.tensor, part.rows)
    if not (part.basis_file and rule.projects):
        return unprojected_fold_bytes(shape, rule, matrix=bool(part.basis_file))
    return large_fold_bytes(shape) if part.of_large else projected_fold_bytes(shape)


def projected_fold_bytes(shape: Sequence[int]) -> int:
    """Return what folding a projected matrix takes that is whole in memory.

    Args:
      shape: (m, n), or (1, m, n) if it is one of stacked matrices.
    """
    m, n = shape[-2:]
    task_vector = accumulated = projected = _F32 * m * n
    overlap = _F32 * min(m, n) * n
    folding = task_vector + accumulated + projected + overlap
    # Before that the basis is computed, if it was not kept.
    return basis_bytes(m, n) + max(folding, decompose_bytes(shape, in_rows=False))


def large_fold_bytes(shape: Sequence[int]) -> int:
    """Return what folding row blocks of a large projected matrix takes for each, besides the right half of the basis.

    Args:
      shape: (rows, n) of the block; the matrix is not wider than tall.
    """
    rows, n = shape
    task_vector = accumulated = left = removed = cross_blocks = _F32 * rows * n
    overlap = _F32 * n * n
    return task_vector + accumulated + left + removed + cross_blocks + overlap


def unprojected_fold_bytes(shape: Sequence[int], rule: Entry, *, matrix: bool) -> int:
    """Return what folding a block takes where nothing is projected.

    Args:
      shape: of the block.
      rule: the merge rule.
      matrix: whether it is the weight of a linear layer, or rows of it.
    """
    task_vector = base = added = _F32
    kept = (ACCUMULATED, *rule.slots, *(rule.matrix_slots if matrix else ()))
    slots_before = slots_after = rule.element_bytes(kept)
    added_in_float64 = rule.element_bytes(rule.doubles)
    statistics = checked = _F32 if rule.statistics == "like" else 0
    # Rules that need whole tensors sort magnitudes, or multiply the task vector by a Gram matrix.
    exact = product = _F64 if rule.whole else 0
    each = task_vector + base + added + slots_before + slots_after + added_in_float64
    each += statistics + checked + exact + product
    squares = gram_fold_bytes(shape[-1], rule) if matrix and rule.square_slots else 0
    return math.prod(shape) * each + squares


def gram_fold_bytes(n: int, rule: Entry) -> int:
    """Return what the (n, n) Gram matrices of a linear layer take in a fold, for a rule that keeps them."""
    square = _F64 * n * n
    before = after = added = unscaled = square
    # A Gram matrix that a submission brings is checked first.
    exact = bounds = difference = triangle = square if rule.statistics == "gram" else 0
    return before + after + added + unscaled + exact + bounds + difference + triangle


def factored_fold_bytes(shape: Sequence[int], rank: int) -> int:
    """Return what folding a matrix takes that is held as factors.

    Args:
      shape: (m, n).
      rank: of the new state, at the most.
    """
    stacked = orthonormal = workspace = folded = _F64 * rank * sum(shape)
    square = _F64 * rank * rank
    merged = update = rotated = before_projection = workspaces = square
    left = right = inner_left = inner_right = multiplied = square
    large = stacked + orthonormal + workspace + folded
    small = merged + update + rotated + before_projection + workspaces
    return large + small + left + right + inner_left + inner_right + multiplied


def decompose_bytes(shape: Sequence[int], *, in_rows: bool) -> int:
    """Return what computing the basis of a matrix takes, besides the basis.

    Args:
      shape: (m, n), or (1, m, n) if it is one of stacked matrices.
      in_rows: whether the matrix is read in row blocks, and its basis written in them.
    """
    m, n = shape[-2:]
    square = _F64 * min(m, n) ** 2
    gram = eigenvectors = flipped = scaled = square
    workspace = 2 * square  # LAPACK's syevd asks for 1 + 6 k + 2 k^2 numbers
    chunk = (_F32 + _F64) * BLOCK_ELEMENTS
    matrix = 0 if in_rows else _F32 * m * n
    left_rows = _F64 * BLOCK_ELEMENTS if in_rows else 0
    return gram + eigenvectors + flipped + scaled + workspace + chunk + matrix + left_rows


def basis_computation_bytes(matrix: Block) -> int:
    """Return what computing the basis of a projected matrix takes, with the basis."""
    m, n = matrix.tensor.shape[-2:]
    return basis_bytes(m, n) + decompose_bytes((m, n), in_rows=matrix.of_large)


def publish_bytes(block: Block, rule: Entry, *, by_spectrum: bool) -> int:
    """Return what merging a block into the base takes, where the publication does not need whole tensors.

    Args:
      block: which.
      rule: the merge rule.
      by_spectrum: whether it is published by the basis of its matrix.
    """
    base = update = merged = _F32
    slots = rule.element_bytes((ACCUMULATED, *rule.slots))
    quotient = update_in_float64 = _F64 if rule.doubles else 0
    each = base + update + merged + slots + quotient + update_in_float64
    m, n = block.tensor.shape[-2:] if by_spectrum else (0, 0)
    return math.prod(block_shape(block.tensor, block.rows)) * each + basis_bytes(m, n)


def adapter_factors_bytes(shape: Sequence[int], rank: int, *, dense: bool) -> int:
    """Return what making an adapter's factors of a matrix takes.

    Args:
      shape: (m, n).
      rank: of the adapter.
      dense: whether the matrix is not held as factors, and has to be decomposed.
    """
    singular_vectors = scaled = padded = written = _F32 * rank * sum(shape)
    decomposed = decompose_bytes(shape, in_rows=False) if dense else 0
    return singular_vectors + scaled + padded + written + decomposed
