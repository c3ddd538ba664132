"""Between folds: bases, computed before they are needed."""

from pathlib import Path

import torch

from foldind.merging import RULES
from foldind.merging.backend import BACKENDS
from foldind.state.accumulators import AccumulatedState
from foldind.state.basisfile import write_basis
from foldind.worker.blocks import is_large
from foldind.worker.large import write_large_basis
from foldind.worker.messages import BasisRequest, BasisTarget
from foldind.worker.ordered import Parallelism, ordered_map


def prepare_bases(request: BasisRequest) -> None:
    """Compute bases of the accumulated state, all at once, and write them durably under the temporary names.

    Raises:
      OSError: a disk is full or failing, or the state is gone.
      DecompositionError: nothing converged.
    """
    torch.set_num_threads(request.threads)
    rule = RULES[request.rule](**request.hyper_parameters, backend=BACKENDS[request.backend])
    with AccumulatedState(Path(request.accumulated)) as state:

        def prepare(target: BasisTarget) -> None:
            if is_large(state.shape(target.tensor)):
                write_large_basis(Path(target.file), rule, state, target.tensor)
            else:
                write_basis(Path(target.file), rule.decompose(state.read(target.tensor, target.rows).flatten(0, -2)))

        at_once = Parallelism(len(request.targets), request.threads, budget=0, limit=0)
        for _ in ordered_map(prepare, request.targets, lambda _: 0, at_once):
            pass
