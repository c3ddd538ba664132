"""The parts of a new state, each from the same part of the old one, the base and the submission; several at once."""

import math
from collections.abc import Collection, Generator, Iterator, Sequence
from hashlib import sha256
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from foldind.checkpoints.plan import Treatment
from foldind.merging.catalog import ACCUMULATED, CATALOG
from foldind.merging.norm import frobenius_norm
from foldind.merging.registry import nothing_merged
from foldind.merging.rule import Factored, FoldedState, Rule, State, Step
from foldind.merging.sketch import sketch, sketch_factored
from foldind.state.accumulators import AccumulatedState, Place
from foldind.state.basisfile import open_basis, read_basis
from foldind.state.layout import Representation
from foldind.state.tensorrecords import Records
from foldind.worker.blocks import Block, FactoredMatrix, FoldedBlock, block_shape, tensor_blocks
from foldind.worker.estimates import fold_bytes
from foldind.worker.large import fold_large, write_large_basis
from foldind.worker.messages import FoldRequest
from foldind.worker.ordered import Parallelism, ordered_map
from foldind.worker.taskvectors.contract import TaskVectors
from foldind.worker.taskvectors.statistics import Statistics

Part = Block | FactoredMatrix

Result = tuple[State | Factored, FoldedBlock, Tensor | None]
"""A part of the new state, its figures, and the sketch of its task vector; None: that is zero, or not finite."""


class Folding:
    """Folds a submission into a state.

    Args:
      request: what is asked.
      rule: the merge rule.
      tables: tensors whose rows are the embeddings of tokens.
      task_vectors: of the submission.
      old: the state; None before the first merge.
      records: of its tensors, as far as they are known.
      statistics: of the submission; None: the rule asks for none.
      parallelism: how much is done at once.
    """

    def __init__(
        self,
        request: FoldRequest,
        rule: Rule,
        tables: Collection[str],
        task_vectors: TaskVectors,
        old: AccumulatedState | None,
        records: Records,
        statistics: Statistics | None,
        parallelism: Parallelism,
    ):
        self._request = request
        self._rule = rule
        self._tables = tables
        self._entry = CATALOG[rule.name]
        self._task_vectors = task_vectors
        self._old = old
        self._records = records
        self._bases = Path(request.bases)
        self._statistics = statistics
        self._parallelism = parallelism

    def parts_of(self, number: int, place: Place) -> Iterator[Part]:
        """Yield the parts in which a tensor is folded, in order.

        Args:
          number: of the tensor among the folded ones of the plan.
          place: where it goes.
        """
        match place.representation:
            case Representation.FACTORED:
                yield FactoredMatrix(place.tensor, place.rank)
            case Representation.DENSE:
                yield from tensor_blocks(number, place.tensor, whole=self._rule.accumulation.whole)

    def results(self, places: Sequence[Place]) -> Generator[Result, None, None]:
        """Yield every part of the new state, in order; of what is not finite, nothing to rely on."""
        parts = (part for number, place in enumerate(places) for part in self.parts_of(number, place))
        for large, run in groupby(parts, self._large_matrix):
            if self._old and large:
                yield from self._fold_large([part for part in run if isinstance(part, Block)], self._old)
            else:
                yield from ordered_map(self._fold, run, lambda part: fold_bytes(part, self._entry), self._parallelism)

    def _large_matrix(self, part: Part) -> str:
        """Return what names the large matrix that a part is of and that something was merged into; else nothing."""
        projected = self._entry.projects and self._representation(part) is not Representation.ZERO
        large = projected and isinstance(part, Block) and part.of_large
        return part.tensor.name if large else ""

    def _representation(self, part: Part) -> Representation:
        return self._old.representation(part.tensor.name) if self._old else Representation.ZERO

    def _fold(self, part: Part) -> Result:
        return self._fold_block(part) if isinstance(part, Block) else self._fold_factored(part)

    def _fold_block(self, block: Block) -> Result:
        task_vector = self._task_vectors.read(block.tensor, block.rows)
        task_vector_norm = frobenius_norm(task_vector)
        if not math.isfinite(task_vector_norm):
            return {}, FoldedBlock.not_finite(task_vector_norm), None
        sketched = sketch(block.tensor.name, block.tensor.shape, block.first, task_vector) if task_vector_norm else None
        state, merged_before = self._state(block)
        if block.basis_file:  # it may be one of stacked matrices
            state = {slot: values.flatten(0, -2) for slot, values in state.items()}
            task_vector = task_vector.flatten(0, -2)
        projection, step = self._rule.accumulation.projection, self._step(block)
        if projection and block.basis_file and merged_before and task_vector_norm > 0:
            basis = read_basis(self._bases / block.basis_file)
            if computed := basis is None:
                basis = self._rule.decomposition.decompose(state[ACCUMULATED])
            accumulated, removed_squared = projection.fold(state[ACCUMULATED], task_vector, basis)
            state, split_rank = {ACCUMULATED: accumulated}, basis.split_rank
        else:
            state, removed_squared = self._fold_into(state, task_vector, step, block)
            split_rank, computed = 0, False
        norm = frobenius_norm(state[ACCUMULATED])
        weighs = step.statistics is not None
        return state, FoldedBlock(task_vector_norm, norm, removed_squared, split_rank, computed, weighs), sketched

    def _fold_into(self, state: State, task_vector: Tensor, step: Step, block: Block) -> FoldedState:
        if not self._request.take_out:
            return self._rule.accumulation.fold(state, task_vector, step)
        assert self._rule.accumulation.take_out is not None, "what cannot be taken out is not admitted"
        rest = self._rule.accumulation.take_out(state, task_vector, step)
        emptied = self._emptied(rest, step, block, changes=bool(task_vector.any()))
        return FoldedState(
            {slot: torch.zeros_like(values) if slot in emptied else values for slot, values in rest.items()}, 0.0
        )

    def _emptied(self, slots: Collection[str], step: Step, block: Block, *, changes: bool) -> set[str]:
        """Return the slots that hold nothing but what is taken out: of these not even rounding may be left.

        What statistics weigh, the slots in float64, is made of all submissions that bring any; the others are made of
        all that change the tensor.
        """
        records = self._records.get(block.tensor.name)
        if records is None:
            return set()
        record, weighed = records[block.matrix], set(self._entry.doubles)
        emptied = weighed if step.statistics is not None and record.weighing == 1 else set()
        return emptied | (set(slots) - weighed if changes and record.submissions == 1 else set())

    def _state(self, block: Block) -> tuple[State, bool]:
        """Return what the block is folded into, and whether anything was merged there before."""
        if self._old is None or self._representation(block) is Representation.ZERO:
            shape = block_shape(block.tensor, block.rows)
            return nothing_merged(self._rule.name, shape, matrix=bool(block.basis_file)), False
        return self._old.read_state(block.tensor.name, block.rows), True

    def _step(self, block: Block) -> Step:
        digest = sha256(f"{self._request.seed} {block.tensor.name} {block.first}".encode()).digest()
        statistics = self._statistics.read(block.tensor, block.rows) if self._statistics else None
        if statistics is not None and block.basis_file:
            statistics = statistics.flatten(0, -2)
        return Step(
            bool(block.basis_file),
            int.from_bytes(digest[:8]) >> 1,
            statistics,
            block.tensor.name in self._tables,
        )

    def _fold_factored(self, matrix: FactoredMatrix) -> Result:
        tensor = matrix.tensor
        source = self._task_vectors.low_rank(tensor)
        assert source is not None
        if self._old is None or self._representation(matrix) is Representation.ZERO:
            (m, n) = tensor.shape
            accumulated = Factored(torch.empty(m, 0), torch.empty(0, dtype=torch.float64), torch.empty(0, n))
        else:
            accumulated = self._old.factors(tensor.name)
        if source.rank == 0:
            return accumulated, FoldedBlock(0.0, _norm(accumulated), rank=len(accumulated.singular_values)), None
        task_vector = source.read()
        if not all(math.isfinite(norm := frobenius_norm(factor)) for factor in task_vector):
            return accumulated, FoldedBlock.not_finite(norm), None
        sketched = sketch_factored(tensor.name, tensor.shape, task_vector)
        if self._request.take_out:
            task_vector = task_vector._replace(up=-task_vector.up)
        fold_factored = self._rule.accumulation.fold_factored
        assert fold_factored is not None
        folded = fold_factored(
            accumulated,
            task_vector,
            project=self._entry.projects and tensor.treatment is Treatment.PROJECTED,
            max_rank=self._request.max_rank,
        )
        figures = FoldedBlock(
            folded.task_vector_norm,
            _norm(folded.accumulated),
            folded.removed_squared,
            folded.split_rank,
            rank=len(folded.accumulated.singular_values),
            dropped_squared=folded.dropped_squared,
        )
        return folded.accumulated, figures, sketched

    def _fold_large(self, blocks: Sequence[Block], old: AccumulatedState) -> Generator[Result, None, None]:
        projection = self._rule.accumulation.projection
        assert projection is not None
        path = self._bases / blocks[0].basis_file
        computed = (basis_file := open_basis(path)) is None
        if basis_file is None:
            path = Path(self._request.state_folder) / blocks[0].basis_file
            write_large_basis(path, self._rule.decomposition, old, blocks[0].tensor.name)
            basis_file = open_basis(path)
            assert basis_file is not None
        with basis_file:
            yield from fold_large(blocks, projection, self._task_vectors, old, basis_file, computed, self._parallelism)
        if computed:
            path.unlink()


def _norm(factored: Factored) -> float:
    return float(torch.linalg.vector_norm(factored.singular_values))
