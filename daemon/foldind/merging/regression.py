"""Row-space regression: the update that does to the rows of every task vector what that task vector does.

    minimise over X:  sum_i c_i ||(X - tau_i) tau_i^T||_F^2,    c_i = 1 / ||tau_i||_F^2

The rows of a task vector are combinations of the inputs that its layer was trained on, and so stand for them. With
K = tau^T tau:

    fold:     G += c K,   A += c tau K,   S += tau
    publish:  X = (A + rho X0) (G + rho I)^-1,   X0 = S / n,   rho = eps tr(G) / columns

which is the mean where the task vectors say nothing. One task vector alone comes back as it was. Tensors that are no
linear layers are averaged.

Source: the data-free case of Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models" (RegMean),
ICLR 2023, with the task vectors in the place of inputs as in Cheng et al., "Whoever Started the Interference Should End
It" (WUDI), ICML 2025.
"""

import torch
from torch import Tensor

from foldind.merging.additive import additive
from foldind.merging.catalog import ACCUMULATED
from foldind.merging.norm import frobenius_norm
from foldind.merging.publications import mean_update
from foldind.merging.record import Record, TensorRecord
from foldind.merging.rule import Accumulation, Publication, State, Step

MOMENT, GRAM = "moment", "gram"
"""Slots of linear layers: A, (m, n), and G, (n, n)."""

_STEPS = 20
"""How often rho is made ten times as large at the most, where it is below the float32 rounding of G."""


def accumulation() -> Accumulation:
    """Return what the regression keeps."""

    def contribution(task_vector: Tensor, step: Step) -> State:
        if not step.matrix:
            return {ACCUMULATED: task_vector}
        exact = task_vector.double()
        weight = 1 / max(frobenius_norm(task_vector) ** 2, torch.finfo(torch.float64).tiny)
        gram = weight * (exact.mT @ exact)
        return {ACCUMULATED: task_vector, MOMENT: (exact @ gram).float(), GRAM: gram.float()}

    return additive(contribution, whole=True)


def publication(eps: float = 0.3) -> Publication:
    """Return how the regression publishes.

    Args:
      eps: weight of the mean, positive. One too small for G to be inverted is made larger.
    """

    def update(state: State, tensor: TensorRecord, record: Record) -> Tensor:
        if GRAM not in state:
            return mean_update(state, record)
        gram = state[GRAM].double()
        rho = eps * float(gram.trace()) / len(gram)
        if not rho > 0:
            return torch.zeros_like(state[ACCUMULATED])
        for rho in (rho * 10.0**power for power in range(_STEPS)):
            factor, failed = torch.linalg.cholesky_ex(gram + rho * torch.eye(len(gram), dtype=torch.float64))
            if not failed:
                break
        moment = state[MOMENT].double() + rho / tensor.submissions * state[ACCUMULATED].double()
        return torch.cholesky_solve(moment.mT, factor).mT.float()

    return Publication(update, whole=True)
