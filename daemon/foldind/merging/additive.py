"""Accumulations that are sums: of the task vectors, or of anything that is computed from each by itself.

They do not depend on the order of the submissions, but for rounding, and a submission can be taken out again.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from foldind.merging.catalog import ACCUMULATED
from foldind.merging.factored import Projection, fold_factored
from foldind.merging.norm import frobenius_norm
from foldind.merging.rule import Accumulation, FoldedState, State, Step

Contribution = Callable[[Tensor, Step], State]
"""A task vector, float32 -> what it adds to every slot, in memory of its own or the task vector itself."""

RESIDUE = 1e-14
"""Share of a weight, summed in float64, at or below which what is left after a removal counts as its rounding."""

Settle = Callable[[State, State], State]
"""(state before, state after something was taken out) -> the latter, with zeros where nobody has weight any more."""

_AS_THEY_ARE = partial(fold_factored, Projection(alpha=0, drop_cross_blocks=False, leading=False))


def additive(
    contribution: Contribution,
    *,
    whole: bool = False,
    removes: bool = False,
    settle: Settle = lambda before, after: after,
) -> Accumulation:
    """Return the accumulation that adds what each task vector contributes.

    Args:
      contribution: of a task vector.
      whole: whether that needs whole tensors.
      removes: whether what it adds to the sum is a part of the task vector, and not all of it.
      settle: clears what a task vector leaves when it is taken out, where rounding would be divided by rounding.
    """

    def fold(state: State, task_vector: Tensor, step: Step) -> FoldedState:
        added = contribution(task_vector, step)
        removed = frobenius_norm(task_vector - added[ACCUMULATED]) ** 2 if removes else 0.0
        return FoldedState({slot: values + added[slot] for slot, values in state.items()}, removed)

    def take_out(state: State, task_vector: Tensor, step: Step) -> State:
        added = contribution(task_vector, step)
        return settle(state, {slot: values - added[slot] for slot, values in state.items()})

    return Accumulation(fold, take_out, whole)


def task_vector_sum() -> Accumulation:
    """Return the accumulation S_t = S_{t-1} + tau_t, which of adapters is of low rank as they are."""
    plain = additive(lambda task_vector, step: {ACCUMULATED: task_vector})
    return plain._replace(fold_factored=_AS_THEY_ARE)
