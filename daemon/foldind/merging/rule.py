"""The contract of a merge rule: a few pure functions over one tensor, and one over a small model-wide record.

A rule touches no file, clock, log or thread, and its state does not grow with the number of submissions. Whoever
streams a model through a rule chooses the order of the tensors, and may hand over row blocks of every tensor that is
not projected, so `fold` and `publish` are elementwise wherever no basis is given.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from foldind.merging.basis import Basis


class Record(NamedTuple):
    """What a rule knows of the whole model; norms are Frobenius norms over all folded tensors, float64."""

    submissions: int
    """How many task vectors were folded."""
    task_vector_norm_sum: float
    """Sum of their norms."""
    accumulated_norm: float
    """Norm of the accumulated state."""

    @property
    def mean_task_vector_norm(self) -> float:
        """n_t, the mean norm of the task vectors folded so far; 0 before the first."""
        return self.task_vector_norm_sum / self.submissions if self.submissions else 0.0


class Folded(NamedTuple):
    """One tensor after a fold."""

    accumulated: Tensor
    """The new state, shape of the tensor, float32."""
    removed_squared: float
    """Squared Frobenius norm of what the rule took out of the task vector."""


class Rule(NamedTuple):
    """How a task vector is folded into the state, and how the state becomes the merged model."""

    name: str
    decompose: Callable[[Tensor], Basis]
    """(m, n) float32 accumulated matrix -> the basis its next fold needs."""
    fold: Callable[[Tensor, Tensor, Basis | None], Folded]
    """(accumulated, task vector, basis) -> the new state; float32, shapes equal; no basis: nothing is projected."""
    divisor: Callable[[Record], float]
    """The record after a fold -> lambda."""
    publish: Callable[[Tensor, Tensor, float], Tensor]
    """(base in its dtype, accumulated float32, lambda) -> the merged tensor in the base's dtype."""
