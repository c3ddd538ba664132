"""The first pass of a fold: from the old state, the base and the submission to the new state."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.checkpoints.vocabulary import token_embeddings
from foldind.errors import CheckpointRefused, listed
from foldind.merging.catalog import CATALOG
from foldind.merging.record import TensorRecord
from foldind.merging.rule import Factored, Rule
from foldind.merging.sketch import WIDTH
from foldind.state.accumulators import AccumulatedState, StateWriter
from foldind.state.durable import FileDigest
from foldind.state.layout import RECORDS
from foldind.state.tensorrecords import Records, read_records, write_records
from foldind.worker.blocks import FoldedBlock
from foldind.worker.folding import Folding
from foldind.worker.messages import FoldRequest, Progress, Report, TensorStatistics
from foldind.worker.ordered import Parallelism
from foldind.worker.places import choose_places
from foldind.worker.taskvectors import not_finite, open_task_vectors
from foldind.worker.taskvectors.statistics import Statistics


class Accumulation(NamedTuple):
    """The new state, and what the fold did to each tensor."""

    tensors: tuple[TensorStatistics, ...]
    norm: float
    """||S_t||."""
    dropped_norm: float
    """Of what a limit of the rank took out of it."""
    bases_computed: int
    """How many bases were not kept from before."""
    sketch: Tensor
    """Of the task vector, (WIDTH,) float32."""
    files: Mapping[str, FileDigest]


def accumulate(
    request: FoldRequest,
    plan: Plan,
    rule: Rule,
    base: Checkpoint,
    submission: Checkpoint,
    statistics: Checkpoint | None,
    parallelism: Parallelism,
    report: Report,
) -> Accumulation:
    """Write the new state. Raises as `fold_submission`.

    Args:
      request: what is asked.
      plan: of the base.
      rule: the merge rule.
      base: the base.
      submission: the checkpoint handed in.
      statistics: that lie beside it; None: the rule asks for none.
      parallelism: how much is done at once.
      report: told of each tensor.
    """
    told: list[TensorStatistics] = []
    norms: list[float] = []
    folded: list[FoldedBlock] = []
    sketched = torch.zeros(WIDTH, dtype=torch.float64)
    records: dict[str, list[TensorRecord]] = {}
    scratch = Path(request.state_folder)
    slots, kind = CATALOG[rule.name].all_slots, CATALOG[rule.name].statistics
    with ExitStack() as stack:
        old: AccumulatedState | None = None
        old_records: Records | None = {}
        if request.accumulated:
            old = stack.enter_context(AccumulatedState(Path(request.accumulated), slots))
            old_records = read_records(Path(request.accumulated))
        task_vectors = stack.enter_context(open_task_vectors(plan, base, submission, request.vocab))
        weights = Statistics(plan, statistics, kind, request.vocab) if kind and statistics else None
        stack.enter_context(weights or nullcontext())
        factored = rule.accumulation.fold_factored is not None
        places = list(choose_places(plan, rule.name, factored, old, task_vectors, weights, request.max_rank))
        new = stack.enter_context(StateWriter(scratch, places, slots))
        tables = token_embeddings(plan)
        folding = Folding(request, rule, tables, task_vectors, old, old_records or {}, weights, parallelism)
        results = stack.enter_context(closing(folding.results(places)))
        for number, place in enumerate(places):
            parts: list[FoldedBlock] = []
            matrices: dict[int, list[FoldedBlock]] = {}
            for part in folding.parts_of(number, place):
                state, figures, sketch = next(results)
                if not math.isfinite(figures.task_vector_norm):
                    raise _refusal(not_finite(task_vectors, plan.folded[number:]))
                if isinstance(state, Factored):
                    new.write_factored(place, state)
                else:
                    new.write_dense(state)
                del state  # the estimates count it until the next result is asked for
                if sketch is not None:
                    sketched += sketch
                parts.append(figures)
                matrices.setdefault(part.matrix, []).append(figures)
            folded += parts
            told.append(_statistics(place.tensor, parts))
            norms.append(math.hypot(*(part.accumulated_norm for part in parts)))
            if old_records is not None and matrices:
                nothing = TensorRecord(0, 0.0, 0.0, place.tensor.name in tables)
                before = old_records.get(place.tensor.name) or [nothing] * len(matrices)
                records[place.tensor.name] = [
                    _record(one, parts, -1 if request.take_out else 1)
                    for one, parts in zip(before, matrices.values(), strict=True)
                ]
            report(Progress("folding", number + 1, len(plan.folded), place.tensor.name))
        if not math.isfinite(norm := math.hypot(*norms)):
            raise CheckpointRefused(
                "its values are so large that merging overflows float32", "check the checkpoint's training run"
            )
        files = new.finish()
        if old_records is not None:
            files[RECORDS] = write_records(scratch, records)
        return Accumulation(
            tuple(told),
            norm,
            math.hypot(*(part.dropped_squared**0.5 for part in folded)),
            sum(part.basis_computed for part in folded),
            sketched.float(),
            files,
        )


def _record(before: TensorRecord, parts: Sequence[FoldedBlock], sign: int) -> TensorRecord:
    task_vector_norm = math.hypot(*(part.task_vector_norm for part in parts))
    submissions = before.submissions + sign * (task_vector_norm > 0)
    taken_from = before.taken_from
    if sign < 0 and task_vector_norm > 0:
        taken_from = max(taken_from, before.accumulated_norm) if submissions else 0.0
    return TensorRecord(
        submissions,
        max(0.0, before.task_vector_squared_sum + sign * task_vector_norm**2),
        math.hypot(*(part.accumulated_norm for part in parts)),
        before.table,
        max(0, before.weighing + sign * any(part.weighs for part in parts)),
        taken_from,
    )


def _statistics(tensor: PlannedTensor, parts: Sequence[FoldedBlock]) -> TensorStatistics:
    norm = math.hypot(*(part.task_vector_norm for part in parts))
    removed_squared = sum(part.removed_squared for part in parts)
    kept = math.sqrt(max(0.0, 1 - removed_squared / norm**2)) if norm else 1.0
    split_rank = max((part.split_rank for part in parts), default=0)
    rank = max((part.rank for part in parts), default=0)
    return TensorStatistics(tensor.name, tensor.treatment, norm, kept, split_rank, rank)


def _refusal(names: Sequence[str]) -> CheckpointRefused:
    return CheckpointRefused(
        f"it has NaN or infinite values in {listed(names)}",
        "the training run diverged or overflowed; submit a checkpoint from before that",
    )
