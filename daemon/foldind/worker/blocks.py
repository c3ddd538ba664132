"""The blocks in which a model is streamed: row blocks, and whole matrices where a tensor is projected."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from foldind.checkpoints.plan import Plan, PlannedTensor, Treatment
from foldind.state.bases import basis_file

BLOCK_ELEMENTS = 2 * 1024 * 1024
"""Tensors that need not be whole are handled in row blocks of about so many elements."""

Rows = tuple[int, int] | None
"""Rows [first, last) of a tensor; None: all of it, for it has no dimensions."""


class Block(NamedTuple):
    """A part of a tensor that is folded at once."""

    tensor: PlannedTensor
    rows: Rows
    basis_file: str = ""
    """Name of the file of its basis, if it is a projected matrix."""

    @property
    def fold_bytes(self) -> int:
        """Bytes that folding it takes at the most."""
        elements = math.prod(block_shape(self.tensor, self.rows))
        if not self.basis_file:
            return 20 * elements
        m, n = self.tensor.shape[-2:]
        k = min(m, n)
        # In float32 tau, S and P(tau), and U^T tau; in float64 the Gram matrix, its eigenvectors and eigh's workspace.
        return 12 * elements + 4 * k * n + 40 * k * k + self.basis_bytes

    @property
    def basis_bytes(self) -> int:
        """Bytes that its basis takes at the most."""
        m, n = self.tensor.shape[-2:]
        return 4 * min(m, n) * (m + n + 2)


def block_shape(tensor: PlannedTensor, rows: Rows) -> tuple[int, ...]:
    """Return the shape of a tensor's rows [first, last)."""
    return tensor.shape if rows is None else (rows[1] - rows[0], *tensor.shape[1:])


def projected_matrices(plan: Plan) -> Iterator[Block]:
    """Yield the blocks that have a basis, in order."""
    for number, tensor in enumerate(plan.folded):
        if tensor.treatment is Treatment.PROJECTED:
            yield from tensor_blocks(number, tensor)


def tensor_blocks(number: int, tensor: PlannedTensor) -> Iterator[Block]:
    """Yield the blocks in which a tensor is folded, in order.

    Args:
      number: of the tensor among the folded ones of the plan.
      tensor: the tensor.
    """
    if tensor.treatment is Treatment.PROJECTED:
        step = tensor.shape[0] if len(tensor.shape) == 2 else 1  # stacked experts are one matrix each
        for first in range(0, tensor.shape[0], step):
            yield Block(tensor, (first, first + step), basis_file(number, first))
    else:
        yield from (Block(tensor, rows) for rows in row_blocks(tensor.shape))


def row_blocks(shape: Sequence[int]) -> Iterator[Rows]:
    """Yield the row ranges in which a tensor of this shape is handled where it need not be whole."""
    if not shape:
        yield None
        return
    step = max(1, BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    for first in range(0, shape[0], step):
        yield first, min(first + step, shape[0])
