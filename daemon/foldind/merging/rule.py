"""The contract of a merge rule: how a task vector is folded into the state, and how the state becomes the merged model.

    rule = accumulation x publication

Both are a few pure functions over one tensor, and small records of the model and of the tensor. They touch no file,
clock, log or thread, and the state does not grow with the number of submissions. Whoever streams a model through a rule
chooses the order of the tensors, and may hand over row blocks wherever a rule does not ask for `whole` tensors.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from foldind.merging.basis import Basis, SmallSide
from foldind.merging.record import Record, TensorRecord

State = Mapping[str, Tensor]
"""What is kept of one tensor, or the same rows of it: slot -> values. Slots, shapes and dtypes are in catalog.py."""


class Step(NamedTuple):
    """What a fold knows of a task vector beside its values."""

    matrix: bool
    """Whether it is the weight of a linear layer."""
    seed: int
    """Of whatever is random; another one for every submission, tensor and row block, and the same one again."""
    statistics: Tensor | None = None
    """What the submission says of it, float32: the same rows of what is shaped like it, or of a linear layer the Gram
    matrix of its inputs, (n, n). None: nothing, or the rule asks for nothing."""
    table: bool = False
    """Whether its rows are the embeddings of tokens."""


class Folded(NamedTuple):
    """One tensor of the accumulated sum after a fold."""

    accumulated: Tensor
    """The new state, shape of the tensor, float32."""
    removed_squared: float
    """Squared Frobenius norm of what the rule took out of the task vector."""


class FoldedState(NamedTuple):
    """All slots of one tensor, or of rows of it, after a fold."""

    state: State
    removed_squared: float
    """Squared Frobenius norm of what the rule took out of the task vector."""


class Fold(Protocol):
    """(accumulated, task vector, basis) of a projected matrix -> the new state; float32, shapes equal.

    These may be some of the rows, and of U the same, if the removal is given; what that removes by itself is then not
    counted in `removed_squared`.
    """

    def __call__(
        self, accumulated: Tensor, task_vector: Tensor, basis: Basis, removal: "Removal | None" = None, /
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
    """Folds a task vector of low rank into a sum of low rank; see merging.factored."""

    def __call__(
        self, accumulated: Factored, task_vector: LowRank, /, *, project: bool, max_rank: int
    ) -> FoldedFactored:
        """See the class."""
        ...


class Decomposition(NamedTuple):
    """How the bases of matrices of the accumulated sum are computed."""

    decompose: Callable[[Tensor], Basis]
    """(m, n) float32 -> its basis."""
    small_side: Callable[[Callable[[], Iterable[Tensor]]], SmallSide]
    """The rows of a tall matrix, in chunks -> what gives the rows of its basis."""
    large_side_rows: Callable[[Tensor, SmallSide], Tensor]
    """Some rows of that matrix -> the same of U, but for the lengths of its columns; float64."""


class Projection(NamedTuple):
    """How the task vector of a linear layer is folded into one that is not zero, given the basis of that."""

    overlap: Callable[[Tensor, Tensor, Basis], Overlap]
    """(accumulated, task vector, basis), or the same rows of each -> what they share."""
    removal: Callable[[Overlap, Basis], Removal]
    """The overlap of the whole matrix, whose memory it may use, and the basis -> what `fold` is to take out."""
    fold: Fold


class Accumulation(NamedTuple):
    """What is kept of the task vectors."""

    fold: Callable[[State, Tensor, Step], FoldedState]
    """(the state before, zeros before the first; task vector, float32) -> the state after, in memory of its own."""
    take_out: Callable[[State, Tensor, Step], State] | None = None
    """Undoes `fold` of the same task vector, whatever was folded since; None: nothing can."""
    whole: bool = False
    """Whether it needs whole tensors, and of stacked matrices each; else it is elementwise, and row blocks will do."""
    projection: Projection | None = None
    """Of linear layers; None: they are folded as everything else is."""
    fold_factored: FoldFactored | None = None
    """None: sums of low rank are not kept as factors."""


class Publication(NamedTuple):
    """How the state becomes the merged task vector."""

    update: Callable[[State, TensorRecord, Record], Tensor]
    """The state of a tensor, or rows of it, and the records -> the same of the merged task vector, float32."""
    whole: bool = False
    """Whether it needs whole tensors, and of stacked matrices each."""
    spectrum: Callable[[Tensor, TensorRecord, Record], Tensor] | None = None
    """Of linear layers: the singular values of S, (q,) float64, descending -> those of the merged task vector, which
    has its singular vectors; None: `update` is for these too."""
    divisor: Callable[[Record], float] | None = None
    """The record -> lambda, if the merged task vector is S / lambda throughout."""


class Rule(NamedTuple):
    """A merge rule."""

    name: str
    accumulation: Accumulation
    publication: Publication
    decomposition: Decomposition
