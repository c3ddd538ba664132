"""A compressed task vector, decoded block by block: no more than the rows that are asked for, and a block."""

from typing import Self

import torch
from torch import Tensor

from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.coding import BLOCK_ELEMENTS, decode_block
from foldind.checkpoints.compressed import CodedTensor, read_compressed, read_offsets
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.checkpoints.tensors import TensorReader
from foldind.worker.blocks import Rows, block_shape
from foldind.worker.taskvectors.contract import ABSENT, LowRankSource
from foldind.worker.taskvectors.tied import names_of, read_tied


class CompressedFile:
    """See contract.TaskVectors; zero for tensors that are not in it."""

    def __init__(self, plan: Plan, base: Checkpoint, submission: Checkpoint):
        del base
        self._plan = plan
        self._tensors = read_compressed(submission)
        self._offsets = {
            name: read_offsets(submission.folder, tensor)
            for name, tensor in self._tensors.items()
            if isinstance(tensor, CodedTensor) and name in plan.by_name
        }
        self._reader = TensorReader(submission.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.__exit__(None, None, None)

    def low_rank(self, tensor: PlannedTensor) -> LowRankSource | None:
        """Return ABSENT for what it lacks, and None for the rest; see contract.TaskVectors."""
        return None if names_of(self._plan, tensor, self._tensors) else ABSENT

    def read(self, tensor: PlannedTensor, rows: Rows) -> Tensor:
        """Return the rows [first, last) of a task vector, or all of it, float32; see contract.TaskVectors.

        Raises:
          CheckpointRefused: a block is not what its elements need, too.
        """
        names = names_of(self._plan, tensor, self._tensors)
        found = read_tied(names, lambda name: self._values(tensor, name, rows))
        return torch.zeros(block_shape(tensor, rows)) if found is None else found.float()

    def _values(self, tensor: PlannedTensor, name: str, rows: Rows) -> Tensor:
        stored = self._tensors[name]
        if not isinstance(stored, CodedTensor):
            return self._reader.read(stored, rows)
        assert rows is not None  # what has no dimensions is not coded
        symbols = self._symbols(stored, rows)
        scales = self._reader.read(stored.scales, rows if stored.scales.shape else None)
        return symbols.view(*scales.shape, -1).mul_(scales.unsqueeze(-1)).reshape(block_shape(tensor, rows))

    def _symbols(self, tensor: CodedTensor, rows: tuple[int, int]) -> Tensor:
        """The symbols of rows [first, last), one after the other, float32."""
        offsets, width = self._offsets[tensor.name], tensor.row_elements
        start, stop = rows[0] * width, rows[1] * width
        symbols = torch.empty(stop - start)
        for block in range(start // BLOCK_ELEMENTS, -(-stop // BLOCK_ELEMENTS)):
            coded = self._reader.read_bytes(tensor.codes, offsets[block], offsets[block + 1]).numpy().data
            where = f"block {block} of tensor {tensor.name!r}"
            decoded = decode_block(tensor.coding, coded, tensor.block_elements(block), where)
            begin = block * BLOCK_ELEMENTS
            first, last = max(start, begin), min(stop, begin + len(decoded))
            symbols.numpy()[first - start : last - start] = decoded[first - begin : last - begin]
        return symbols
