"""Projected matrices too large to be whole in memory, such as the output layers of language models.

Their basis is computed and their task vectors are folded row block by row block. Which blocks these are depends on the
shape alone, and so do the bytes.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from foldind.merging.basis import Basis, settle_lengths
from foldind.merging.catalog import ACCUMULATED
from foldind.merging.norm import frobenius_norm
from foldind.merging.rule import Decomposition, Overlap, Projection, State
from foldind.merging.sketch import sketch
from foldind.state.accumulators import AccumulatedState
from foldind.state.basisfile import BasisFile, BasisWriter
from foldind.worker.blocks import Block, FoldedBlock, block_shape, row_blocks
from foldind.worker.estimates import large_fold_bytes
from foldind.worker.ordered import Parallelism, ordered_map
from foldind.worker.taskvectors.contract import TaskVectors


def write_large_basis(path: Path, decomposition: Decomposition, state: AccumulatedState, tensor: str) -> None:
    """Compute the basis of a large matrix of the accumulated state, and write it to a new file, durably.

    Raises:
      OSError: the disk is full or failing.
      DecompositionError: nothing converged.
    """

    def chunks() -> Iterator[Tensor]:
        return (state.read(tensor, rows) for rows in row_blocks(state.shape(tensor)))

    height, width = state.shape(tensor)
    side = decomposition.small_side(chunks)
    kept = side.vectors.shape[1]
    squared = torch.zeros(kept, dtype=torch.float64)
    with BasisWriter(path, height, width, kept, len(side.singular_values), side.split_rank) as writer:
        for chunk in chunks():
            rows = decomposition.large_side_rows(chunk, side)
            writer.write(rows.float())
            squared += rows.square_().sum(0)
        singular_values, lengths = settle_lengths(side, squared)
        writer.finish(lengths, side.vectors.mT.float(), singular_values)


def fold_large(
    blocks: Sequence[Block],
    projection: Projection,
    task_vectors: TaskVectors,
    old: AccumulatedState,
    basis_file: BasisFile,
    computed: bool,
    parallelism: Parallelism,
) -> Generator[tuple[State, FoldedBlock, Tensor | None], None, None]:
    """Yield the row blocks of a large matrix of the new state, float32, in order, as folding.Result.

    Of one whose task vector is not finite, nothing but that is yielded.

    Args:
      blocks: all of its row blocks.
      projection: of the merge rule.
      task_vectors: of the submission.
      old: the state that it is folded into.
      basis_file: of the matrix in that state.
      computed: whether that was not kept from before.
      parallelism: how many blocks are worked on at once.
    """
    basis = basis_file.read_right()

    def read(block: Block) -> tuple[Tensor, Tensor, Basis]:
        accumulated = old.read(block.tensor.name, block.rows)
        task_vector = task_vectors.read(block.tensor, block.rows)
        return accumulated, task_vector, basis._replace(left=basis_file.read_left(block.rows))

    def measure(block: Block) -> tuple[float, Tensor, Overlap]:
        accumulated, task_vector, rows = read(block)
        sketched = sketch(block.tensor.name, block.tensor.shape, block.first, task_vector)
        return frobenius_norm(task_vector), sketched, projection.overlap(accumulated, task_vector, rows)

    def block_bytes(block: Block) -> int:
        return large_fold_bytes(block_shape(block.tensor, block.rows))

    norms: list[float] = []
    sketches: list[Tensor] = []
    total: Overlap | None = None
    with closing(ordered_map(measure, blocks, block_bytes, parallelism)) as measured:
        for norm, sketched, overlap in measured:
            norms.append(norm)
            sketches.append(sketched)
            total = total.plus(overlap) if total else overlap
    assert total is not None
    if not math.isfinite(norm := math.hypot(*norms)):
        yield {}, FoldedBlock.not_finite(norm), None
        return
    removal = projection.removal(total, basis)

    def fold(numbered: tuple[int, Block]) -> tuple[State, FoldedBlock, Tensor]:
        number, block = numbered
        folded = projection.fold(*read(block), removal)
        figures = FoldedBlock(
            task_vector_norm=norms[number],
            accumulated_norm=frobenius_norm(folded.accumulated),
            removed_squared=folded.removed_squared + (0.0 if number else removal.squared),
            split_rank=basis.split_rank,
            basis_computed=computed and not number,
        )
        return {ACCUMULATED: folded.accumulated}, figures, sketches[number]

    yield from ordered_map(fold, enumerate(blocks), lambda numbered: block_bytes(numbered[1]), parallelism)
