"""Between folds: the basis of one matrix, computed before it is needed."""

from pathlib import Path

import torch

from foldind.merging import RULES
from foldind.merging.backend import BACKENDS
from foldind.state.accumulators import AccumulatedState
from foldind.state.basisfile import write_basis
from foldind.worker.messages import BasisRequest


def prepare_basis(request: BasisRequest) -> None:
    """Compute the basis of one matrix of the accumulated state, and write it durably under the temporary name.

    Raises:
      OSError: a disk is full or failing, or the state is gone.
      DecompositionError: nothing converged.
    """
    torch.set_num_threads(request.threads)
    rule = RULES[request.rule](**request.hyper_parameters, backend=BACKENDS[request.backend])
    with AccumulatedState(Path(request.accumulated)) as state:
        matrix = state.read(request.tensor, request.rows).flatten(0, -2)
    write_basis(Path(request.target), rule.decompose(matrix))
