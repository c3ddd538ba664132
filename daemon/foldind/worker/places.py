"""How a fold's new state holds each tensor: as little as represents it exactly."""

import math
from collections.abc import Iterator

from foldind.checkpoints.header import ITEM_BYTES
from foldind.checkpoints.plan import Plan, PlannedTensor, Treatment
from foldind.checkpoints.vocabulary import token_embeddings
from foldind.merging.catalog import CATALOG, slots_of
from foldind.state.accumulators import AccumulatedState, Place, factored_bytes
from foldind.state.layout import Representation
from foldind.worker.taskvectors.contract import TaskVectors
from foldind.worker.taskvectors.statistics import Statistics


def choose_places(
    plan: Plan,
    rule: str,
    factored: bool,
    old: AccumulatedState | None,
    task_vectors: TaskVectors,
    statistics: Statistics | None,
    max_rank: int,
) -> Iterator[Place]:
    """Yield where each folded tensor goes, in order.

    What nothing was merged into stays zero. What all submissions changed by factors is held as factors, for as long as
    these take less than the tensor; everything else is dense.

    Args:
      plan: of the base.
      rule: name of the merge rule.
      factored: whether that keeps what is of low rank as factors.
      old: the state that is folded into; None before the first merge.
      task_vectors: of the submission.
      statistics: of the submission, which are merged of what it did not change too; None: the rule asks for none.
      max_rank: that factors may have; 0: any.
    """
    tables = token_embeddings(plan) if CATALOG[rule].tables else frozenset()
    for tensor in plan.folded:
        rank = _rank(tensor, old, task_vectors)
        if rank == 0 and not (statistics and statistics.has(tensor)):
            yield Place(tensor, Representation.ZERO, 0, {})
            continue
        if rank and factored and len(tensor.shape) == 2 and tensor.name not in tables:
            m, n = tensor.shape
            rank = min(rank, m, n, max_rank or rank)
            if factored_bytes((m, n), rank) < ITEM_BYTES["F32"] * math.prod(tensor.shape):
                yield Place(tensor, Representation.FACTORED, rank, {})
                continue
        slots = slots_of(rule, tensor.shape, matrix=tensor.treatment is Treatment.PROJECTED)
        yield Place(tensor, Representation.DENSE, 0, slots)


def _rank(tensor: PlannedTensor, old: AccumulatedState | None, task_vectors: TaskVectors) -> int | None:
    """Return the rank that the new state has at the most, if that is known."""
    source = task_vectors.low_rank(tensor)
    if source is None or (old and old.representation(tensor.name) is Representation.DENSE):
        return None
    return source.rank + (old.rank(tensor.name) if old else 0)
