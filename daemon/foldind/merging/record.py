"""The small records that a rule keeps of the whole model and of each tensor; without torch, for the daemon."""

from typing import NamedTuple


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


class TensorRecord(NamedTuple):
    """The same of one tensor, or of one matrix of a tensor of stacked ones."""

    submissions: int
    """How many task vectors were not zero here."""
    task_vector_squared_sum: float
    """Sum of their squared norms."""
    accumulated_norm: float
    """Norm of the accumulated state."""
    table: bool = False
    """Whether its rows are the embeddings of tokens, of which a task changes few."""
    weighing: int = 0
    """How many submissions brought statistics of it, where the rule asks for any."""
    taken_from: float = 0.0
    """Norm of the largest accumulated state that a task vector was taken out of; 0 if none was, or nothing is left.

    The state still has the float32 rounding of that one."""
