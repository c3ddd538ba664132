"""The statistics of a submission, block by block, and whether their values can be what they claim to be."""

from typing import Self

import torch
from torch import Tensor

from foldind.checkpoints.checkpoint import STATISTICS, Checkpoint
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.checkpoints.statistics import Kind, cut_statistics
from foldind.checkpoints.tensors import TORCH_DTYPES
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.errors import CheckpointRefused
from foldind.merging.fisher import is_fisher
from foldind.merging.regmean import is_gram
from foldind.worker.blocks import Rows
from foldind.worker.taskvectors.common import CommonRowsOnly
from foldind.worker.taskvectors.contract import TaskVectors
from foldind.worker.taskvectors.difference import DifferenceFile
from foldind.worker.taskvectors.tied import names_of


class Statistics:
    """A context manager; may be read from several threads at once.

    Args:
      plan: of the base.
      statistics: of a submission, admitted with it.
      kind: what they are.
      vocab: the policy under which it was admitted.
    """

    def __init__(self, plan: Plan, statistics: Checkpoint, kind: Kind, vocab: VocabPolicy):
        self._kind = kind
        common = cut_statistics(statistics, plan, kind, vocab)
        self._plan = common.plan
        self._tensors = common.submission.tensors
        self._values: TaskVectors = DifferenceFile(common.plan, common.submission, common.submission)
        if common.rows:
            self._values = CommonRowsOnly(self._values, {name: common.plan.by_name[name] for name in common.rows})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._values.__exit__(None, None, None)

    def has(self, tensor: PlannedTensor) -> bool:
        """Tell whether there are any of a folded tensor."""
        return self._plan.by_name[tensor.name].folded and bool(names_of(self._plan, tensor, self._tensors))

    def read(self, tensor: PlannedTensor, rows: Rows) -> Tensor | None:
        """Return those of the rows [first, last) of a tensor, or of a matrix the whole Gram matrix, float32, if any.

        Raises:
          CheckpointRefused: they cannot be what they should be.
          OSError: they cannot be read.
        """
        if not self.has(tensor):
            return None
        if self._kind == "like":
            values = self._values.read(tensor, rows)
            self._check(tensor, values, is_fisher(values), "has negative or enormous values, and is no diagonal Fisher")
            return values
        planned = self._plan.by_name[tensor.name]
        (*stacked, n, _) = planned.shape
        values = self._values.read(planned, rows if stacked else (0, n))
        eps = torch.finfo(TORCH_DTYPES[self._tensors[names_of(self._plan, tensor, self._tensors)[0]].dtype]).eps
        sound = bool(torch.isfinite(values).all()) and is_gram(values.view(n, n), eps)
        self._check(tensor, values, sound, "is not symmetric and positive semi-definite, and so no Gram matrix")
        return values.add(values.mT).div_(2)

    def _check(self, tensor: PlannedTensor, values: Tensor, sound: bool, wrong: str) -> None:
        finite = bool(torch.isfinite(values).all())
        if not finite or not sound:
            name = names_of(self._plan, tensor, self._tensors)[0]
            raise CheckpointRefused(
                f"in {STATISTICS}, {name!r} {wrong if finite else 'has NaN or infinite values'}",
                "compute it anew, and save it in float32",
            )
