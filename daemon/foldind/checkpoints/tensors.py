"""The tensors of a checkpoint, read one block at a time.

Bytes are read into memory of our own rather than mapped: a file that is cut short under a mapping kills the process,
and pages of a mapping count as memory of the process for as long as the kernel likes.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import BinaryIO, Self

import torch
from torch import Tensor

from foldind.checkpoints.header import TensorInfo

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Safetensors dtype -> torch dtype, of the dtypes that are computed with."""


def bytes_of(values: Tensor) -> memoryview:
    """Return the bytes of a tensor, row by row, as safetensors files hold them."""
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().data


class TensorReader:
    """Reads tensors of one folder; a context manager that holds its files open. Several threads may read at once."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._open = ExitStack()
        self._opening = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def read_bytes(self, tensor: TensorInfo, start: int, stop: int) -> Tensor:
        """Return bytes [start, stop) of a tensor, (stop - start,) uint8.

        Raises:
          EOFError: the file is shorter than its header said.
          OSError: it cannot be read.
        """
        block = torch.empty(stop - start, dtype=torch.uint8)
        into = block.numpy().data
        descriptor, done = self._descriptor(tensor.file), 0
        while done < len(into):
            count = os.preadv(descriptor, [into[done:]], tensor.start + start + done)
            if count == 0:
                raise EOFError(f"{tensor.file} ends inside tensor {tensor.name!r}")
            done += count
        return block

    def read(self, tensor: TensorInfo, rows: tuple[int, int] | None = None) -> Tensor:
        """Return a tensor in its own dtype, or the rows [first, last) of its leading dimension.

        Raises:
          EOFError, OSError: as read_bytes.
        """
        first, last = rows or (0, tensor.shape[0] if tensor.shape else 1)
        row_bytes = tensor.nbytes // max(tensor.shape[0], 1) if tensor.shape else tensor.nbytes
        block = self.read_bytes(tensor, first * row_bytes, last * row_bytes)
        shape = (last - first, *tensor.shape[1:]) if tensor.shape else ()
        return block.view(TORCH_DTYPES[tensor.dtype]).reshape(shape)

    def _descriptor(self, name: str) -> int:
        with self._opening:
            if name not in self._files:
                self._files[name] = self._open.enter_context((self._folder / name).open("rb", buffering=0))
            return self._files[name].fileno()
