"""How a sum of task vectors becomes the merged one: the publications that serve every rule which keeps such a sum.

In all of them S is the accumulated sum, of the whole model in ||S|| and n_t, and of one tensor in the rest. Factors are
positive, exponents from 0 to 1.
"""

import torch
from torch import Tensor

from foldind.merging.catalog import ACCUMULATED
from foldind.merging.record import Record, TensorRecord
from foldind.merging.rule import Publication, State

CANCELLED = 1e-6
"""An accumulated norm at or below this share of the mean task-vector norm counts as zero."""


def norm() -> Publication:
    """Return S / lambda, lambda = ||S|| / n_t: as long as the task vectors are on average, over the whole model.

    1 when everything merged so far cancels out, for then S is rounding error and is not to be blown up.

    Source: Tang et al., "Merging Models on the Fly Without Retraining", NeurIPS 2025, Algorithm 1.
    """

    def divisor(record: Record) -> float:
        if record.accumulated_norm <= CANCELLED * record.mean_task_vector_norm or not record.mean_task_vector_norm:
            return 1.0
        return record.accumulated_norm / record.mean_task_vector_norm

    return Publication(lambda state, tensor, record: state[ACCUMULATED] / divisor(record), divisor=divisor)


def mean() -> Publication:
    """Return S / N."""
    return Publication(
        lambda state, tensor, record: mean_update(state, record), divisor=lambda record: record.submissions
    )


def scale(factor: float = 0.3) -> Publication:
    """Return factor * S.

    Source: Ilharco et al., "Editing models with task arithmetic", ICLR 2023.
    """
    return Publication(lambda state, tensor, record: state[ACCUMULATED] * factor, divisor=lambda record: 1 / factor)


def tensor_norm(factor: float = 1.0) -> Publication:
    """Return S made as long, in each tensor, as factor times the root mean square of its task vectors' norms."""

    def update(state: State, tensor: TensorRecord, record: Record) -> Tensor:
        length = factor * root_mean_square(tensor)
        if tensor.accumulated_norm <= CANCELLED * length:
            return state[ACCUMULATED] * 0
        return state[ACCUMULATED] * (length / tensor.accumulated_norm)

    return Publication(update)


def iso(factor: float = 1.0) -> Publication:
    """Return S with each singular value of a linear layer at factor times their mean, and S / N elsewhere.

    The mean is over the directions that S has. The authors' is over all that a matrix can have, which for sums of
    adapters is shorter, and stretches directions that nothing was merged in.

    Source: Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
    ICML 2025 (Iso-C).
    """

    def spectrum(singular_values: Tensor, tensor: TensorRecord, record: Record) -> Tensor:
        return (factor * singular_values.mean()).expand(len(singular_values))

    return Publication(lambda state, tensor, record: mean_update(state, record), spectrum=spectrum)


def flat(factor: float = 2.0) -> Publication:
    """Return S with a flat spectrum in each linear layer, and S / N elsewhere.

    A layer is as long as factor times the root mean square of its task vectors' norms.
    """

    def spectrum(singular_values: Tensor, tensor: TensorRecord, record: Record) -> Tensor:
        value = factor * root_mean_square(tensor) / len(singular_values) ** 0.5
        return torch.full_like(singular_values, value)

    return Publication(lambda state, tensor, record: mean_update(state, record), spectrum=spectrum)


def power(exponent: float = 0.5) -> Publication:
    """Return S with its singular values to a power in each linear layer, which stays as long, and S / N elsewhere."""
    return Publication(
        lambda state, tensor, record: mean_update(state, record),
        spectrum=lambda singular_values, tensor, record: to_power(singular_values, exponent),
    )


def to_power(singular_values: Tensor, exponent: float) -> Tensor:
    """Return singular values to a power, as long together as they were.

    Args:
      singular_values: (q,) float64, descending, positive, at least one.
      exponent: from 0, which makes them equal, to 1, which leaves them alone.
    """
    shaped = (singular_values / singular_values[0]) ** exponent
    return shaped * (float(singular_values.norm()) / float(shaped.norm()))


def mean_update(state: State, record: Record) -> Tensor:
    """Return S / N."""
    return state[ACCUMULATED] / record.submissions


def root_mean_square(tensor: TensorRecord) -> float:
    """Return the root mean square of the norms of the task vectors that changed a tensor; 0 if none did."""
    return (tensor.task_vector_squared_sum / tensor.submissions) ** 0.5 if tensor.submissions else 0.0
