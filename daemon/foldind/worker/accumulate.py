"""The first pass of a fold: from the old state, the base and the submission to the new state."""

import math
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.checkpoints.tensors import bytes_of
from foldind.errors import CheckpointRefused
from foldind.merging.norm import frobenius_norm
from foldind.merging.rule import Rule
from foldind.state.accumulators import AccumulatedState, new_accumulated_file
from foldind.state.basisfile import open_basis, read_basis
from foldind.state.durable import FileDigest
from foldind.worker.blocks import Block, FoldedBlock, tensor_blocks
from foldind.worker.large import fold_large, write_large_basis
from foldind.worker.messages import FoldRequest, Progress, Report, TensorStatistics
from foldind.worker.ordered import Parallelism, ordered_map
from foldind.worker.taskvectors import not_finite, open_task_vectors
from foldind.worker.taskvectors.contract import TaskVectors


class Accumulation(NamedTuple):
    """The new state, and what the fold did to each tensor."""

    tensors: tuple[TensorStatistics, ...]
    norm: float
    """||S_t||."""
    bases_computed: int
    """How many bases were not kept from before."""
    file: FileDigest


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
    bases_computed = 0
    with ExitStack() as stack:
        old = stack.enter_context(AccumulatedState(Path(request.accumulated))) if request.accumulated else None
        task_vectors = stack.enter_context(open_task_vectors(plan, base, submission))
        new = stack.enter_context(new_accumulated_file(Path(request.state_folder), plan))
        folding = _Folding(rule, task_vectors, old, Path(request.bases), Path(request.state_folder), parallelism)
        results = stack.enter_context(closing(folding.blocks(plan.folded)))
        for number, tensor in enumerate(plan.folded):
            parts = []
            for _ in tensor_blocks(number, tensor):
                accumulated, part = next(results)
                if not math.isfinite(part.task_vector_norm):
                    raise _refusal(not_finite(task_vectors, plan.folded[number:]))
                new.write(bytes_of(accumulated))
                parts.append(part)
            statistics.append(_statistics(tensor, parts))
            norms.append(math.hypot(*(part.accumulated_norm for part in parts)))
            bases_computed += sum(part.basis_computed for part in parts)
            report(Progress("folding", number + 1, len(plan.folded), tensor.name))
        if not math.isfinite(norm := math.hypot(*norms)):
            raise CheckpointRefused(
                "its values are so large that merging overflows float32", "check the checkpoint's training run"
            )
        return Accumulation(tuple(statistics), norm, bases_computed, new.finish())


class _Folding:
    """Folds block by block, several at once."""

    def __init__(
        self,
        rule: Rule,
        task_vectors: TaskVectors,
        old: AccumulatedState | None,
        bases: Path,
        scratch: Path,
        parallelism: Parallelism,
    ):
        self._rule = rule
        self._task_vectors = task_vectors
        self._old = old
        self._bases = bases
        self._scratch = scratch
        self._parallelism = parallelism

    def blocks(self, tensors: Sequence[PlannedTensor]) -> Generator[tuple[Tensor, FoldedBlock], None, None]:
        """Yield every block of the new state, float32, and its figures; of what is not finite, nothing to rely on."""
        blocks = (block for number, tensor in enumerate(tensors) for block in tensor_blocks(number, tensor))
        for large, run in groupby(blocks, lambda block: block.basis_file if self._old and block.of_large else ""):
            if self._old and large:
                yield from self._fold_large(list(run), self._old)
            else:
                yield from ordered_map(self._fold, run, lambda block: block.fold_bytes, self._parallelism)

    def _fold(self, block: Block) -> tuple[Tensor, FoldedBlock]:
        task_vector = self._task_vectors.read(block.tensor, block.rows)
        task_vector_norm = frobenius_norm(task_vector)
        if not math.isfinite(task_vector_norm):
            return task_vector, FoldedBlock.not_finite(task_vector_norm)
        old = self._old
        accumulated = old.read(block.tensor.name, block.rows) if old else torch.zeros_like(task_vector)
        basis, computed = None, False
        if old and block.basis_file and task_vector_norm > 0:
            accumulated, task_vector = accumulated.flatten(0, -2), task_vector.flatten(0, -2)  # one of stacked experts
            basis = read_basis(self._bases / block.basis_file)
            if computed := basis is None:
                basis = self._rule.decompose(accumulated)
        folded = self._rule.fold(accumulated, task_vector, basis)
        return folded.accumulated, FoldedBlock(
            task_vector_norm,
            frobenius_norm(folded.accumulated),
            folded.removed_squared,
            basis.split_rank if basis else 0,
            computed,
        )

    def _fold_large(
        self, blocks: Sequence[Block], old: AccumulatedState
    ) -> Generator[tuple[Tensor, FoldedBlock], None, None]:
        path = self._bases / blocks[0].basis_file
        computed = (basis_file := open_basis(path)) is None
        if basis_file is None:
            path = self._scratch / blocks[0].basis_file
            write_large_basis(path, self._rule, old, blocks[0].tensor.name)
            basis_file = open_basis(path)
            assert basis_file is not None
        with basis_file:
            yield from fold_large(blocks, self._rule, self._task_vectors, old, basis_file, computed, self._parallelism)
        if computed:
            path.unlink()


def _statistics(tensor: PlannedTensor, parts: Sequence[FoldedBlock]) -> TensorStatistics:
    norm = math.hypot(*(part.task_vector_norm for part in parts))
    removed_squared = sum(part.removed_squared for part in parts)
    kept = math.sqrt(max(0.0, 1 - removed_squared / norm**2)) if norm else 1.0
    split_rank = max((part.split_rank for part in parts), default=0)
    return TensorStatistics(tensor.name, tensor.treatment, norm, kept, split_rank)


def _refusal(names: Sequence[str]) -> CheckpointRefused:
    more = f" and {len(names) - 5} more tensors" if len(names) > 5 else ""
    return CheckpointRefused(
        f"it has NaN or infinite values in {', '.join(names[:5])}{more}",
        "the training run diverged or overflowed; submit a checkpoint from before that",
    )
