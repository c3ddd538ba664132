"""Foldin's own rule: OPCM for linear layers, the same for the embedding of each token, and a spectrum that grows flat.

    fold:     linear layer   S += P(tau; S), the projection of OPCM
              tokens' rows   s += x - (<x, s> / ||s||^2) s, which is the same for a matrix of one row
              elsewhere      S += tau
    publish:  linear layer   U diag(sigma') V^T,   sigma' ~ sigma^(1/N),   ||sigma'|| = ||S||
              tokens' rows   S
              elsewhere      S / N

A sum of many updates has a few directions that they share and many that are one update's own; at its natural lengths
the first drown the second. The more was merged, the flatter the spectrum is made: one update comes back as it was, and
of many every direction gets nearly the same length. Nothing is divided by lambda: what is orthogonal does not add up to
too much. What is neither (norms, biases, embeddings of positions) is changed by all tasks at once, and is averaged.

Source of the flat spectrum: Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific
Subspaces", ICML 2025 (Iso-C), where it is that of the plain sum, and its length is tuned.
"""

from torch import Tensor

from foldind.merging.catalog import ACCUMULATED
from foldind.merging.norm import frobenius_norm
from foldind.merging.publications import mean_update, to_power
from foldind.merging.record import Record, TensorRecord
from foldind.merging.rule import Accumulation, FoldedState, Publication, State, Step


def with_tables(accumulation: Accumulation) -> Accumulation:
    """Return an accumulation that folds the embedding of each token orthogonally to what is merged of it."""

    def fold(state: State, task_vector: Tensor, step: Step) -> FoldedState:
        if not step.table:
            return accumulation.fold(state, task_vector, step)
        accumulated = state[ACCUMULATED]
        squared = accumulated.square().sum(1, keepdim=True)
        share = (task_vector * accumulated).sum(1, keepdim=True) / squared.where(squared > 0, 1)
        removed = share * accumulated
        return FoldedState({ACCUMULATED: accumulated + (task_vector - removed)}, frobenius_norm(removed) ** 2)

    return accumulation._replace(fold=fold)


def publication() -> Publication:
    """Return how the rule publishes."""

    def update(state: State, tensor: TensorRecord, record: Record) -> Tensor:
        return state[ACCUMULATED].clone() if tensor.table else mean_update(state, record)

    def spectrum(singular_values: Tensor, tensor: TensorRecord, record: Record) -> Tensor:
        return to_power(singular_values, 1 / record.submissions)

    return Publication(update, spectrum=spectrum)
