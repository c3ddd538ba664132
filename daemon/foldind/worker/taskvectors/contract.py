"""What a fold asks of a submission, whatever its form."""

from contextlib import AbstractContextManager
from typing import Protocol, Self

from torch import Tensor

from foldind.checkpoints.plan import PlannedTensor
from foldind.worker.blocks import Rows


class TaskVectors(AbstractContextManager["TaskVectors"], Protocol):
    """tau = submission - base, block by block; zero for tensors that the submission has nothing of.

    A context manager; may be read from several threads at once.
    """

    def __enter__(self) -> Self: ...

    def read(self, tensor: PlannedTensor, rows: Rows) -> Tensor:
        """Return the rows [first, last) of a task vector, or all of it, float32, in memory of the caller's own.

        Raises:
          CheckpointRefused: its values contradict each other.
          OSError: it cannot be read.
        """
        ...
