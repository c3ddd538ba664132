"""Task vectors of the rows that a submission and the base both have; zero in the base's other rows."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from foldind.checkpoints.plan import PlannedTensor
from foldind.worker.blocks import Rows, block_shape
from foldind.worker.taskvectors.contract import LowRankSource, TaskVectors


class CommonRowsOnly:
    """See contract.TaskVectors.

    Args:
      inner: the task vectors of the tensors that were cut, and of all others.
      cut: the base's tensors that were cut, as they are in `inner`, by name.
    """

    def __init__(self, inner: TaskVectors, cut: Mapping[str, PlannedTensor]):
        self._inner = inner
        self._cut = cut

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._inner.__exit__(None, None, None)

    def low_rank(self, tensor: PlannedTensor) -> LowRankSource | None:
        """Return what is known of its rank: of tensors that are cut, whether there is anything; see contract."""
        return self._inner.low_rank(tensor)  # factors of what is cut were refused when they came

    def read(self, tensor: PlannedTensor, rows: Rows) -> Tensor:
        """Return the rows [first, last) of a task vector, or all of it, float32; see contract.TaskVectors."""
        cut = self._cut.get(tensor.name)
        if cut is None:
            return self._inner.read(tensor, rows)
        assert rows is not None  # what has rows is of one dimension at least
        block = torch.zeros(block_shape(tensor, rows))
        first, last = rows[0], min(rows[1], cut.shape[0])
        if first < last:
            found = self._inner.read(cut, (first, last))
            block[tuple(slice(size) for size in found.shape)] = found
        return block
