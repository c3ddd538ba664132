"""A file of differences: its tensors are the task vectors."""

from typing import Self

import torch
from torch import Tensor

from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.checkpoints.tensors import TensorReader
from foldind.worker.blocks import Rows, block_shape
from foldind.worker.taskvectors.contract import ABSENT, LowRankSource
from foldind.worker.taskvectors.tied import names_of, read_tied


class DifferenceFile:
    """See contract.TaskVectors; zero for tensors that are not in it."""

    def __init__(self, plan: Plan, base: Checkpoint, submission: Checkpoint):
        del base
        self._plan = plan
        self._tensors = submission.tensors
        self._reader = TensorReader(submission.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.__exit__(None, None, None)

    def low_rank(self, tensor: PlannedTensor) -> LowRankSource | None:
        """Return ABSENT for what it lacks, and None for the rest; see contract.TaskVectors."""
        return None if names_of(self._plan, tensor, self._tensors) else ABSENT

    def read(self, tensor: PlannedTensor, rows: Rows) -> Tensor:
        """Return the rows [first, last) of a task vector, or all of it, float32; see contract.TaskVectors."""
        names = names_of(self._plan, tensor, self._tensors)
        found = read_tied(names, lambda name: self._reader.read(self._tensors[name], rows))
        return torch.zeros(block_shape(tensor, rows)) if found is None else found.float()
