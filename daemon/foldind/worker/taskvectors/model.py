"""A whole model: its task vectors are what it differs from the base."""

from contextlib import ExitStack
from typing import Self

from torch import Tensor

from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.checkpoints.tensors import TensorReader
from foldind.worker.blocks import Rows
from foldind.worker.taskvectors.contract import ABSENT, LowRankSource
from foldind.worker.taskvectors.tied import names_of, read_tied


class FineTunedModel:
    """See contract.TaskVectors; zero for tensors that a partial submission lacks."""

    def __init__(self, plan: Plan, base: Checkpoint, submission: Checkpoint):
        self._plan = plan
        self._base_tensors = base.tensors
        self._tensors = submission.tensors
        self._readers = ExitStack()
        self._base = self._readers.enter_context(TensorReader(base.folder))
        self._submission = self._readers.enter_context(TensorReader(submission.folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._readers.close()

    def low_rank(self, tensor: PlannedTensor) -> LowRankSource | None:
        """Return ABSENT for what it lacks, and None for the rest; see contract.TaskVectors."""
        return None if names_of(self._plan, tensor, self._tensors) else ABSENT

    def read(self, tensor: PlannedTensor, rows: Rows) -> Tensor:
        """Return the rows [first, last) of a task vector, or all of it, float32; see contract.TaskVectors."""
        base = self._base.read(self._base_tensors[tensor.name], rows).float()
        names = names_of(self._plan, tensor, self._tensors)
        found = read_tied(names, lambda name: self._submission.read(self._tensors[name], rows))
        return base.zero_() if found is None else found.float().sub_(base)
