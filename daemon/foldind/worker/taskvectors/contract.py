"""What a fold asks of a submission, whatever its form."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, Self

from torch import Tensor

from foldind.checkpoints.plan import PlannedTensor
from foldind.merging.rule import LowRank
from foldind.worker.blocks import Rows


class LowRankSource(NamedTuple):
    """A task vector that is known to be of low rank without reading it."""

    rank: int
    """At the most; 0: it is zero."""
    read: Callable[[], LowRank]
    """Its factors, float32; not asked for where it is zero. Raises OSError."""


def _unread() -> LowRank:
    raise AssertionError("a task vector that is zero is not read")


ABSENT = LowRankSource(0, _unread)
"""Of a tensor that the submission has nothing of."""


class TaskVectors(AbstractContextManager["TaskVectors"], Protocol):
    """tau = submission - base, block by block; zero for tensors that the submission has nothing of.

    A context manager; may be read from several threads at once.
    """

    def __enter__(self) -> Self: ...

    def low_rank(self, tensor: PlannedTensor) -> LowRankSource | None:
        """Return a task vector as factors, where it is of low rank by the submission's form; else None."""
        ...

    def read(self, tensor: PlannedTensor, rows: Rows) -> Tensor:
        """Return the rows [first, last) of a task vector, or all of it, float32, in memory of the caller's own.

        Raises:
          CheckpointRefused: its values contradict each other.
          OSError: it cannot be read.
        """
        ...
