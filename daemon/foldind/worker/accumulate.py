"""The first pass of a fold: from the old state, the base and the submission to the new state."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.errors import CheckpointRefused
from foldind.merging.rule import Factored, Rule
from foldind.state.accumulators import AccumulatedState, StateWriter
from foldind.state.durable import FileDigest
from foldind.worker.blocks import FoldedBlock
from foldind.worker.folding import Folding, parts_of
from foldind.worker.messages import FoldRequest, Progress, Report, TensorStatistics
from foldind.worker.ordered import Parallelism
from foldind.worker.places import choose_places
from foldind.worker.taskvectors import not_finite, open_task_vectors


class Accumulation(NamedTuple):
    """The new state, and what the fold did to each tensor."""

    tensors: tuple[TensorStatistics, ...]
    norm: float
    """||S_t||."""
    dropped_norm: float
    """Of what a limit of the rank took out of it."""
    bases_computed: int
    """How many bases were not kept from before."""
    files: Mapping[str, FileDigest]


def accumulate(
    request: FoldRequest,
    plan: Plan,
    rule: Rule,
    base: Checkpoint,
    submission: Checkpoint,
    parallelism: Parallelism,
    report: Report,
) -> Accumulation:
    """Write the new state. Raises as `fold_submission`."""
    statistics: list[TensorStatistics] = []
    norms: list[float] = []
    folded: list[FoldedBlock] = []
    scratch = Path(request.state_folder)
    with ExitStack() as stack:
        old = stack.enter_context(AccumulatedState(Path(request.accumulated))) if request.accumulated else None
        task_vectors = stack.enter_context(open_task_vectors(plan, base, submission, request.vocab))
        places = list(choose_places(plan, old, task_vectors, request.max_rank))
        new = stack.enter_context(StateWriter(scratch, places))
        folding = Folding(rule, task_vectors, old, Path(request.bases), scratch, request.max_rank, parallelism)
        results = stack.enter_context(closing(folding.results(places)))
        for number, place in enumerate(places):
            parts = []
            for _ in parts_of(number, place):
                accumulated, part = next(results)
                if not math.isfinite(part.task_vector_norm):
                    raise _refusal(not_finite(task_vectors, plan.folded[number:]))
                if isinstance(accumulated, Factored):
                    new.write_factored(place, accumulated)
                else:
                    new.write_dense(accumulated)
                parts.append(part)
            folded += parts
            statistics.append(_statistics(place.tensor, parts))
            norms.append(math.hypot(*(part.accumulated_norm for part in parts)))
            report(Progress("folding", number + 1, len(plan.folded), place.tensor.name))
        if not math.isfinite(norm := math.hypot(*norms)):
            raise CheckpointRefused(
                "its values are so large that merging overflows float32", "check the checkpoint's training run"
            )
        return Accumulation(
            tuple(statistics),
            norm,
            math.hypot(*(part.dropped_squared**0.5 for part in folded)),
            sum(part.basis_computed for part in folded),
            new.finish(),
        )


def _statistics(tensor: PlannedTensor, parts: Sequence[FoldedBlock]) -> TensorStatistics:
    norm = math.hypot(*(part.task_vector_norm for part in parts))
    removed_squared = sum(part.removed_squared for part in parts)
    kept = math.sqrt(max(0.0, 1 - removed_squared / norm**2)) if norm else 1.0
    split_rank = max((part.split_rank for part in parts), default=0)
    rank = max((part.rank for part in parts), default=0)
    return TensorStatistics(tensor.name, tensor.treatment, norm, kept, split_rank, rank)


def _refusal(names: Sequence[str]) -> CheckpointRefused:
    more = f" and {len(names) - 5} more tensors" if len(names) > 5 else ""
    return CheckpointRefused(
        f"it has NaN or infinite values in {', '.join(names[:5])}{more}",
        "the training run diverged or overflowed; submit a checkpoint from before that",
    )
