"""RegMean: the linear layers whose outputs, on every submission's inputs X, are closest to that submission's outputs.

    minimise over X_merged:  sum_i ||(X_merged - tau_i) X_i^T||_F^2

which the Gram matrices of the inputs decide, G_i = X_i^T X_i:

    fold:     G += G_i',   A += tau_i G_i',   S += tau_i;     G' is G with the elements off the diagonal times shrink
    publish:  A G^-1

What G leaves open, inputs that were always zero say, is the mean S / n, and so are tensors that are no linear layers.
One submission alone comes back as it was. One that brings no Gram matrix of a layer gives it no weight there.

Source: Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023, where shrink is alpha.
"""

import torch
from torch import Tensor

from foldind.merging.additive import RESIDUE, additive
from foldind.merging.catalog import ACCUMULATED
from foldind.merging.fisher import LARGEST
from foldind.merging.publications import mean_update
from foldind.merging.record import Record, TensorRecord
from foldind.merging.rule import Accumulation, Publication, State, Step

MOMENT, GRAM = "moment", "gram"
"""Slots of linear layers: A, (m, n), and G, (n, n)."""

SINGULAR = 1e-4
"""Of a G with a diagonal of ones, the square of a pivot below which rounding of float32 statistics would show."""

RIDGES = (0.0, *(10.0**power for power in range(-3, 7)))
"""What is tried in turn; a million is more than enough for any matrix of so many columns with a diagonal of ones."""

ROUNDING = 1e-3
"""Share of an element of a Gram matrix by which summing in float32 may have changed it, generously."""


def accumulation(shrink: float = 0.9) -> Accumulation:
    """Return what RegMean keeps.

    Args:
      shrink: what elements of the Gram matrices off the diagonal are multiplied by, from 0 to 1.

    Raises:
      ValueError: it is out of range.
    """
    if not 0 <= shrink <= 1:
        raise ValueError(f"shrink is from 0 to 1, not {shrink}")

    def contribution(task_vector: Tensor, step: Step) -> State:
        if not step.matrix:
            return {ACCUMULATED: task_vector}
        if step.statistics is None:
            gram = torch.zeros(2 * task_vector.shape[-1:], dtype=torch.float64)
            return {ACCUMULATED: task_vector, MOMENT: torch.zeros_like(task_vector, dtype=gram.dtype), GRAM: gram}
        gram = step.statistics.double().mul_(shrink)
        gram.diagonal().copy_(step.statistics.diagonal())
        return {ACCUMULATED: task_vector, MOMENT: task_vector.double() @ gram, GRAM: gram}

    def settle(before: State, after: State) -> State:
        if GRAM not in after:
            return after
        unseen = after[GRAM].diagonal() <= RESIDUE * before[GRAM].diagonal()
        gram = after[GRAM].masked_fill(unseen, 0).masked_fill_(unseen[:, None], 0)
        return {**after, MOMENT: after[MOMENT].masked_fill(unseen, 0), GRAM: gram}

    return additive(contribution, whole=True, settle=settle)


def publication() -> Publication:
    """Return how RegMean publishes."""

    def update(state: State, tensor: TensorRecord, record: Record) -> Tensor:
        mean = mean_update(state, record)
        return _solve(state[MOMENT].double(), state[GRAM].double(), mean.double()).float() if GRAM in state else mean

    return Publication(update, whole=True)


def _solve(moment: Tensor, gram: Tensor, mean: Tensor) -> Tensor:
    """Return A G^-1 with as much of the mean as a solution needs: (A + ridge mean D) (G + ridge D)^-1, D = diag G."""
    lengths = gram.diagonal().sqrt()
    unseen = ~(lengths > 0)  # inputs: their rows and columns are zero
    lengths[unseen] = 1
    gram = (gram / lengths).div_(lengths[:, None])
    moment = moment / lengths
    mean = mean * lengths
    moment[:, unseen] = mean[:, unseen]
    for ridge in RIDGES:
        gram.diagonal().fill_(1 + ridge)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed and float(factor.diagonal().min()) ** 2 >= SINGULAR:
            break
    return torch.cholesky_solve(moment.add_(mean, alpha=ridge).mT, factor).mT / lengths


def is_gram(gram: Tensor, eps: float) -> bool:
    """Tell whether a finite matrix can be X^T X, but for rounding.

    Args:
      gram: (n, n) float32.
      eps: of the dtype that it was stored in, `torch.finfo(...).eps`.
    """
    exact = gram.double()
    diagonal = exact.diagonal()
    if not bool(((diagonal >= 0) & (diagonal <= LARGEST)).all()):
        return False
    lengths = diagonal.sqrt()
    bounds = lengths[:, None] * lengths
    each = max(ROUNDING, 4 * eps)
    if bool((exact.abs() > bounds * (1 + each)).any() or ((exact - exact.mT).abs() > bounds * each).any()):
        return False
    bounds[bounds == 0] = 1
    exact = (exact + exact.mT).div_(2).div_(bounds)
    exact.diagonal().add_(max(ROUNDING, 4 * eps * len(exact) ** 0.5))
    return not torch.linalg.cholesky_ex(exact).info
