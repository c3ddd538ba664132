"""Bases of the accumulated state: between folds, before the next needs them, or because a publication does."""

from collections.abc import Sequence
from pathlib import Path

import torch

from foldind.checkpoints.plan import Plan
from foldind.merging.backend import BACKENDS
from foldind.merging.registry import make_rule
from foldind.merging.rule import Rule
from foldind.state.accumulators import AccumulatedState
from foldind.state.basisfile import has_basis, write_basis
from foldind.state.layout import Representation
from foldind.worker.blocks import Block, Rows, is_large, projected_matrices
from foldind.worker.estimates import basis_computation_bytes
from foldind.worker.large import write_large_basis
from foldind.worker.messages import BasisRequest, BasisTarget, Progress, Report
from foldind.worker.ordered import Parallelism, ordered_map


def prepare_bases(request: BasisRequest) -> None:
    """Compute bases of the accumulated state, all at once, and write them durably under the temporary names.

    Raises:
      OSError: a disk is full or failing, or the state is gone.
      DecompositionError: nothing converged.
    """
    torch.set_num_threads(request.threads)
    rule = make_rule(request.rule, request.hyper_parameters, backend=BACKENDS[request.backend])
    with AccumulatedState(Path(request.accumulated)) as state:

        def prepare(target: BasisTarget) -> None:
            prepare_basis(Path(target.file), rule, state, target.tensor, target.rows)

        at_once = Parallelism(len(request.targets), request.threads, budget=0, limit=0)
        for _ in ordered_map(prepare, request.targets, lambda _: 0, at_once):
            pass


def prepare_missing_bases(
    plan: Plan,
    rule: Rule,
    state: AccumulatedState,
    folders: Sequence[Path],
    parallelism: Parallelism,
    report: Report,
) -> None:
    """Compute those bases of the accumulated state that are in none of the folders, into the first, durably.

    Raises: as `prepare_bases`.
    """
    matrices = [
        matrix
        for matrix in projected_matrices(plan)
        if state.representation(matrix.tensor.name) is Representation.DENSE
    ]

    def prepare(matrix: Block) -> None:
        if not any(has_basis(folder / matrix.basis_file) for folder in folders):
            prepare_basis(folders[0] / matrix.basis_file, rule, state, matrix.tensor.name, matrix.rows)

    for number, _ in enumerate(ordered_map(prepare, matrices, basis_computation_bytes, parallelism), 1):
        report(Progress("decomposing", number, len(matrices), matrices[number - 1].tensor.name))


def prepare_basis(path: Path, rule: Rule, state: AccumulatedState, tensor: str, rows: Rows) -> None:
    """Compute the basis of one matrix of the accumulated state, and write it durably. Raises as `prepare_bases`."""
    if is_large(state.shape(tensor)):
        write_large_basis(path, rule.decomposition, state, tensor)
    else:
        write_basis(path, rule.decomposition.decompose(state.read(tensor, rows).flatten(0, -2)))
