"""The accumulated state on disk: S, one float32 tensor for each folded tensor of the plan, in one safetensors file."""

import errno
import math
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from foldind.checkpoints.header import TensorInfo, read_header
from foldind.checkpoints.plan import Plan
from foldind.checkpoints.tensors import TensorReader
from foldind.errors import CheckpointRefused
from foldind.state.tensorfile import TensorFileWriter, TensorSpec

ACCUMULATED = "accumulated.safetensors"


class AccumulatedState:
    """Reads S block by block. A context manager; may be read from several threads at once."""

    def __init__(self, folder: Path):
        self._tensors = _tensors_in(folder / ACCUMULATED)
        self._reader = TensorReader(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a tensor of S."""
        return self._tensors[tensor].shape

    def read(self, tensor: str, rows: tuple[int, int] | None) -> Tensor:
        """Return the rows [first, last) of a tensor of S, or all of it, float32."""
        return self._reader.read(self._tensors[tensor], rows)


def _tensors_in(path: Path) -> dict[str, TensorInfo]:
    try:
        return {tensor.name: tensor for tensor in read_header(path).tensors}
    except (CheckpointRefused, FileNotFoundError) as error:
        raise OSError(errno.EIO, "the accumulated state is damaged or gone; see `foldind fsck`", str(path)) from error


def new_accumulated_file(folder: Path, plan: Plan) -> TensorFileWriter:
    """Start the state file of a version; its tensors are to be written in the order of plan.folded."""
    specs = [TensorSpec(tensor.name, "F32", tensor.shape, 4 * math.prod(tensor.shape)) for tensor in plan.folded]
    return TensorFileWriter(folder / ACCUMULATED, specs, {})
