"""A PEFT adapter: its task vectors are what `merge_and_unload` would add to the base."""

from contextlib import ExitStack
from typing import Self

import torch
from torch import Tensor

from foldind.checkpoints.adapter import LowRankChange, Shift, Whole, read_adapter
from foldind.checkpoints.adapterconfig import MERGE
from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.header import TensorInfo
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.checkpoints.tensors import TensorReader
from foldind.errors import CheckpointRefused
from foldind.merging.rule import LowRank
from foldind.worker.blocks import Rows, block_shape, row_blocks
from foldind.worker.taskvectors.contract import ABSENT, LowRankSource
from foldind.worker.taskvectors.tied import names_of, read_tied


class Adapter:
    """See contract.TaskVectors; zero for tensors that it does not change."""

    def __init__(self, plan: Plan, base: Checkpoint, submission: Checkpoint):
        self._plan = plan
        self._changes = read_adapter(submission, plan, ignore=("*",))  # what it has besides was judged when it came
        self._wholes = {name: change.values for name, change in self._changes.items() if isinstance(change, Whole)}
        self._base_tensors = base.tensors
        self._readers = ExitStack()
        self._base = self._readers.enter_context(TensorReader(base.folder))
        self._adapter = self._readers.enter_context(TensorReader(submission.folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._readers.close()

    def low_rank(self, tensor: PlannedTensor) -> LowRankSource | None:
        """Return the factors of a product, ABSENT for what it does not change, else None; see contract.TaskVectors."""
        names = names_of(self._plan, tensor, self._changes)
        if not names:
            return ABSENT
        change = self._changes[names[0]]
        if not isinstance(change, LowRankChange) or change.magnitude:
            return None

        def read() -> LowRank:
            for rows in row_blocks(tensor.shape):
                self._check_base(change, tensor, rows)
            return self._factors(change, None)

        return LowRankSource(change.down.shape[0], read)

    def read(self, tensor: PlannedTensor, rows: Rows) -> Tensor:
        """Return the rows [first, last) of a task vector, or all of it, float32; see contract.TaskVectors."""
        names = names_of(self._plan, tensor, self._changes)
        if not names:
            return torch.zeros(block_shape(tensor, rows))
        change = self._changes[names[0]]
        if isinstance(change, LowRankChange):
            assert rows is not None  # it is of a matrix
            self._check_base(change, tensor, rows)
            return self._with_magnitude(change, tensor, rows) if change.magnitude else self._product(change, rows)
        if isinstance(change, Shift):
            return self._values(change.values, rows).mul_(change.scale)
        names = names_of(self._plan, tensor, self._wholes)
        whole = read_tied(names, lambda name: self._values(self._wholes[name], rows))
        assert whole is not None  # it has one at least under its own name
        return whole.sub_(self._base_values(tensor, rows))

    def _check_base(self, change: LowRankChange, tensor: PlannedTensor, rows: Rows) -> None:
        if change.base:
            trained_beside = self._adapter.read(change.base, rows)
            base = self._base_values(tensor, rows).to(trained_beside.dtype)
            if not torch.equal(trained_beside, base):
                raise CheckpointRefused(
                    f"the adapter's {change.base.name!r} is not the base's {tensor.name!r}",
                    "check which base it was trained on; if that tensor was trained too, " + MERGE,
                )

    def _product(self, change: LowRankChange, rows: tuple[int, int]) -> Tensor:
        factors = self._factors(change, rows)
        return factors.up @ factors.down

    def _factors(self, change: LowRankChange, rows: Rows) -> LowRank:
        if not change.transposed:
            return LowRank(self._values(change.up, rows), self._values(change.down).mul_(change.scale))
        first, last = rows or (0, change.down.shape[1])
        return LowRank(self._values(change.down)[:, first:last].mT, self._values(change.up).mul_(change.scale).mT)

    def _with_magnitude(self, change: LowRankChange, tensor: PlannedTensor, rows: tuple[int, int]) -> Tensor:
        """DoRA: m (W + s B A) / ||W + s B A|| - W, the norm that of each output's weights.

        Its squares may leave the range of float32, and a norm that is infinite would leave nothing of the weights.
        """
        assert change.magnitude is not None
        magnitude = self._values(change.magnitude).reshape(-1)
        if not change.transposed:
            base = self._base_values(tensor, rows)
            total = self._product(change, rows).add_(base)
            lengths = torch.linalg.vector_norm(total, dim=1, keepdim=True, dtype=torch.float64)
            return total.mul_((magnitude[rows[0] : rows[1], None] / lengths).float()).sub_(base)
        base, everything = self._base_values(tensor, None), (0, tensor.shape[0])
        total = self._product(change, everything).add_(base)  # an output's weights are a column
        lengths = torch.linalg.vector_norm(total, dim=0, keepdim=True, dtype=torch.float64)
        return total.mul_((magnitude / lengths).float()).sub_(base)[rows[0] : rows[1]].contiguous()

    def _base_values(self, tensor: PlannedTensor, rows: Rows) -> Tensor:
        return self._base.read(self._base_tensors[tensor.name], rows).float()

    def _values(self, tensor: TensorInfo, rows: Rows = None) -> Tensor:
        return self._adapter.read(tensor, rows).float()
