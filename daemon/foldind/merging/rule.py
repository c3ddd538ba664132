"""The contract of a merge rule: a few pure functions over one tensor, and one over a small model-wide record.

A rule touches no file, clock, log or thread, and its state does not grow with the number of submissions. Whoever
streams a model through a rule chooses the order of the tensors, and may hand over row blocks: `fold` and `publish` are
elementwise wherever no basis is given, and a projected matrix is folded in row blocks once their overlap is summed up.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from torch import Tensor

from foldind.merging.basis import Basis, SmallSide


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


class Fold(Protocol):
    """(accumulated, task vector, basis) -> the new state; float32, shapes equal; no basis: nothing is projected.

    Of a projected matrix these may be some of the rows, and of U the same, if its removal is given; what that removes
    by itself is then not counted in `removed_squared`.
    """

    def __call__(
        self, accumulated: Tensor, task_vector: Tensor, basis: Basis | None, removal: "Removal | None" = None, /
    ) -> Folded:
        """See the class."""
        ...


class Overlap(NamedTuple):
    """What a task vector shares with what is merged, of a projected matrix or of a row block of one.

    That of the matrix is the sum of those of its row blocks.
    """

    rotated: Tensor
    """U^T tau, (p, n) float32; p as of the basis or fewer."""
    inner: float
    """<tau, S>; 0 where the rule does not ask for it."""

    def plus(self, other: "Overlap") -> "Overlap":
        """Return the sum, in the memory of the first."""
        return Overlap(self.rotated.add_(other.rotated), self.inner + other.inner)


class Removal(NamedTuple):
    """What is taken out of the task vector of a projected matrix, but for what depends on its rows alone."""

    rows: Tensor
    """(p, n) float32; multiplied from the left with U."""
    block: Tensor
    """U_r^T tau V_r, (r, r) float32."""
    share: float
    """Of S."""
    squared: float
    """Squared Frobenius norm of this part of it."""


class LowRank(NamedTuple):
    """A task vector of low rank, tau = up @ down."""

    up: Tensor
    """B, (m, r) float32."""
    down: Tensor
    """A, (r, n) float32."""


class Factored(NamedTuple):
    """A matrix of the accumulated state that is of low rank, as its thin SVD: left @ diag(singular_values) @ right."""

    left: Tensor
    """U, (m, q) float32, orthonormal columns."""
    singular_values: Tensor
    """sigma, (q,) float64, descending, positive."""
    right: Tensor
    """V^T, (q, n) float32, orthonormal rows."""


class FoldedFactored(NamedTuple):
    """One such matrix after a fold; squared Frobenius norms."""

    accumulated: Factored
    """The new state."""
    task_vector_norm: float
    """Frobenius norm of tau."""
    removed_squared: float
    """Of what the rule took out of the task vector."""
    split_rank: int
    """r."""
    dropped_squared: float
    """Of what a limit of the rank took out of the new state."""


class FoldFactored(Protocol):
    """As `Fold`, of a state and a task vector that both are of low rank; see merging.factored."""

    def __call__(
        self, accumulated: Factored, task_vector: LowRank, /, *, project: bool, max_rank: int
    ) -> FoldedFactored:
        """See the class."""
        ...


class Rule(NamedTuple):
    """How a task vector is folded into the state, and how the state becomes the merged model."""

    name: str
    decompose: Callable[[Tensor], Basis]
    """(m, n) float32 accumulated matrix -> the basis its next fold needs."""
    small_side: Callable[[Callable[[], Iterable[Tensor]]], SmallSide]
    """The rows of a tall accumulated matrix, in chunks -> what gives the rows of its basis."""
    large_side_rows: Callable[[Tensor, SmallSide], Tensor]
    """Some rows of that matrix -> the same of U, but for the lengths of its columns; float64."""
    overlap: Callable[[Tensor, Tensor, Basis], Overlap]
    """(accumulated, task vector, basis), or the same rows of each -> what they share."""
    removal: Callable[[Overlap, Basis], Removal]
    """The overlap of the whole matrix, whose memory it may use, and the basis -> what `fold` is to take out."""
    fold: Fold
    fold_factored: FoldFactored
    divisor: Callable[[Record], float]
    """The record after a fold -> lambda."""
    publish: Callable[[Tensor, Tensor, float], Tensor]
    """(base in its dtype, accumulated float32, lambda) -> the merged tensor in the base's dtype."""
