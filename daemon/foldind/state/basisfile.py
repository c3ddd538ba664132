"""One basis in one safetensors file, written and read whole or by rows of U."""

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from foldind.checkpoints.header import Header, read_header
from foldind.checkpoints.tensors import TensorReader, bytes_of
from foldind.errors import CheckpointRefused
from foldind.merging.basis import Basis
from foldind.state.bases import DIGEST_BYTES
from foldind.state.tensorfile import TensorFileWriter, TensorSpec

_SPLIT_RANK = "split_rank"


class BasisWriter:
    """Writes a basis to a new file, U first, in row blocks. A context manager; without `finish` the file is removed."""

    def __init__(self, path: Path, height: int, width: int, kept: int, rank: int, split_rank: int):
        """Begin it: U is (height, kept), V^T (kept, width), sigma (rank,). Raises OSError."""
        specs = [
            TensorSpec("left", "F32", (height, kept), 4 * height * kept),
            TensorSpec("lengths", "F32", (kept,), 4 * kept),
            TensorSpec("right", "F32", (kept, width), 4 * kept * width),
            TensorSpec("singular_values", "F64", (rank,), 8 * rank),
            TensorSpec("sha256", "U8", (DIGEST_BYTES,), DIGEST_BYTES),
        ]
        self._file = TensorFileWriter(path, specs, {_SPLIT_RANK: str(split_rank)})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def write(self, rows: Tensor) -> None:
        """Append rows of U, float32, whose columns may be of any length. Raises OSError."""
        self._file.write(bytes_of(rows))

    def finish(self, lengths: Tensor, right: Tensor, singular_values: Tensor) -> None:
        """Write the rest, and make the file durable. Raises OSError.

        Args:
          lengths: of the columns that U was written with, (kept,) float32.
          right: V^T, (kept, width) float32.
          singular_values: (rank,) float64.
        """
        for factor in (lengths, right, singular_values):
            self._file.write(bytes_of(factor))
        self._file.write(memoryview(self._file.digest()))
        self._file.finish()


def write_basis(path: Path, basis: Basis) -> None:
    """Write a basis to a new file, durably. Raises OSError."""
    (height, kept), width = basis.left.shape, basis.right.shape[1]
    with BasisWriter(path, height, width, kept, len(basis.singular_values), basis.split_rank) as writer:
        writer.write(basis.left)
        writer.finish(torch.ones(kept), basis.right, basis.singular_values)


class BasisFile:
    """Reads a basis. A context manager; may be read from several threads at once."""

    def __init__(self, path: Path, header: Header):
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        self._reader = TensorReader(path.parent)
        self._split_rank = int(header.metadata[_SPLIT_RANK])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.__exit__(None, None, None)

    def read(self) -> Basis:
        """Return the basis. Raises OSError."""
        return self.read_right()._replace(left=self.read_left(None))

    def read_right(self) -> Basis:
        """Return the basis with no row of U. Raises OSError."""
        right, values = (self._reader.read(self._tensors[name]) for name in ("right", "singular_values"))
        return Basis(torch.empty(0, len(right)), values, right, self._split_rank)

    def read_left(self, rows: tuple[int, int] | None) -> Tensor:
        """Return the rows [first, last) of U, or all, float32. Raises OSError."""
        lengths = self._reader.read(self._tensors["lengths"])
        return self._reader.read(self._tensors["left"], rows).div_(lengths)


def open_basis(path: Path) -> BasisFile | None:
    """Open what `write_basis` wrote; None if it is not there, or damaged. Raises OSError: it cannot be read."""
    try:
        return BasisFile(path, read_header(path))
    except (FileNotFoundError, CheckpointRefused, KeyError, ValueError):
        return None


def has_basis(path: Path) -> bool:
    """Tell whether there is a basis that is not damaged. Raises OSError: it cannot be read."""
    if (file := open_basis(path)) is None:
        return False
    with file:
        return True


def read_basis(path: Path) -> Basis | None:
    """Read what `write_basis` wrote; None if it is not there, or damaged. Raises OSError: it cannot be read."""
    if (file := open_basis(path)) is None:
        return None
    with file:
        return file.read()
