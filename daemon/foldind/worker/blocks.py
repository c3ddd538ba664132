"""The blocks in which a model is streamed: row blocks, and whole matrices where a tensor is projected."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from foldind.checkpoints.plan import Plan, PlannedTensor, Treatment
from foldind.state.bases import basis_file

BLOCK_ELEMENTS = 2 * 1024 * 1024
"""Tensors that need not be whole are handled in row blocks of about so many elements."""

LARGE_ELEMENTS = 8 * 1024 * 1024
"""Weights of linear layers with more are handled in row blocks too, unless they are wider than tall; see large.py."""

Rows = tuple[int, int] | None
"""Rows [first, last) of a tensor; None: all of it, for it has no dimensions."""


class Block(NamedTuple):
    """A part of a tensor that is folded at once."""

    tensor: PlannedTensor
    rows: Rows
    basis_file: str = ""
    """Name of the file of the basis of the matrix that it is of, if it is of the weight of a linear layer."""

    @property
    def first(self) -> int:
        """The first of its rows."""
        return self.rows[0] if self.rows else 0

    @property
    def of_large(self) -> bool:
        """Whether it is of a large matrix."""
        return bool(self.basis_file) and is_large(self.tensor.shape)

    @property
    def matrix(self) -> int:
        """Number of the matrix that it is of, among those that are stacked in its tensor; else 0."""
        return self.first if self.basis_file and len(self.tensor.shape) > 2 else 0


class FactoredMatrix(NamedTuple):
    """A matrix of the state that is held as factors, and folded as such."""

    tensor: PlannedTensor
    rank: int
    """Of the new state, at the most."""

    matrix: int = 0


class FoldedBlock(NamedTuple):
    """What a fold did to a block or a matrix; norms are Frobenius norms."""

    task_vector_norm: float
    """NaN or infinite: it cannot be folded, and the rest says nothing."""
    accumulated_norm: float
    removed_squared: float = 0.0
    split_rank: int = 0
    basis_computed: bool = False
    """Whether its basis was not kept from before."""
    weighs: bool = False
    """Whether the submission brought statistics of its tensor."""
    rank: int = 0
    """Of the new state, if that is held as factors."""
    dropped_squared: float = 0.0
    """Squared norm of what a limit of the rank took out of the new state."""

    @classmethod
    def not_finite(cls, task_vector_norm: float) -> Self:
        """Return what is said of a block that cannot be folded."""
        return cls(task_vector_norm, math.nan)


def is_large(shape: Sequence[int]) -> bool:
    """Tell whether a projected tensor of this shape is a matrix that is never whole in memory."""
    return len(shape) == 2 and shape[0] >= shape[1] and math.prod(shape) > LARGE_ELEMENTS


def block_shape(tensor: PlannedTensor, rows: Rows) -> tuple[int, ...]:
    """Return the shape of a tensor's rows [first, last)."""
    return tensor.shape if rows is None else (rows[1] - rows[0], *tensor.shape[1:])


def projected_matrices(plan: Plan) -> Iterator[Block]:
    """Yield the weights of linear layers, of which each may have a basis, whole, in order."""
    for number, tensor in enumerate(plan.folded):
        if tensor.treatment is Treatment.PROJECTED:
            yield from _matrices(number, tensor)


def tensor_blocks(number: int, tensor: PlannedTensor, *, whole: bool = False) -> Iterator[Block]:
    """Yield the blocks in which a tensor is folded, in order.

    Args:
      number: of the tensor among the folded ones of the plan.
      tensor: the tensor.
      whole: whether row blocks will not do.
    """
    if tensor.treatment is not Treatment.PROJECTED:
        all_rows: Rows = (0, tensor.shape[0]) if tensor.shape else None
        yield from (Block(tensor, rows) for rows in ([all_rows] if whole else row_blocks(tensor.shape)))
        return
    for matrix in _matrices(number, tensor):
        if matrix.of_large and not whole:
            yield from (matrix._replace(rows=rows) for rows in row_blocks(tensor.shape))
        else:
            yield matrix


def _matrices(number: int, tensor: PlannedTensor) -> Iterator[Block]:
    step = tensor.shape[0] if len(tensor.shape) == 2 else 1  # stacked experts are one matrix each
    for first in range(0, tensor.shape[0], step):
        yield Block(tensor, (first, first + step), basis_file(number, first))


def row_blocks(shape: Sequence[int]) -> Iterator[Rows]:
    """Yield the row ranges in which a tensor of this shape is handled where it need not be whole."""
    if not shape:
        yield None
        return
    step = max(1, BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    for first in range(0, shape[0], step):
        yield first, min(first + step, shape[0])
