"""The task vectors of a submission."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Self

import torch
from torch import Tensor

from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.checkpoints.tensors import TensorReader
from foldind.errors import CheckpointRefused
from foldind.worker.blocks import Rows, row_blocks


class TaskVectors:
    """tau = submission - base, block by block, float32; zero for tensors that a partial submission lacks.

    A context manager; may be read from several threads at once.
    """

    def __init__(self, plan: Plan, base: Checkpoint, submission: Checkpoint):
        self._base_tensors = base.tensors
        self._tensors = submission.tensors
        self._tied_names = plan.tied_names
        self._readers = ExitStack()
        self._base = self._readers.enter_context(TensorReader(base.folder))
        self._submission = self._readers.enter_context(TensorReader(submission.folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._readers.close()

    def not_finite(self, tensors: Iterable[PlannedTensor]) -> list[str]:
        """Return which of the tensors have NaN or infinite elements."""
        return [
            tensor.name
            for tensor in tensors
            if not all(bool(torch.isfinite(self.read(tensor, rows)).all()) for rows in row_blocks(tensor.shape))
        ]

    def read(self, tensor: PlannedTensor, rows: Rows) -> Tensor:
        """Return the rows [first, last) of a task vector, or all of it, float32.

        Raises:
          CheckpointRefused: tensors that are one in the base differ.
        """
        base = self._base.read(self._base_tensors[tensor.name], rows).float()
        names = [name for name in (tensor.name, *self._tied_names.get(tensor.name, ())) if name in self._tensors]
        if not names:
            return base.zero_()
        first, *others = (self._submission.read(self._tensors[name], rows) for name in names)
        for name, other in zip(names[1:], others, strict=True):
            if not torch.allclose(first.float(), other.float(), rtol=0, atol=0, equal_nan=True):
                raise CheckpointRefused(
                    f"tensors {names[0]!r} and {name!r} are one in the base, and differ in it",
                    "fine-tune with tied weights, or use a base in which they are not tied",
                )
        return first.float().sub_(base)
