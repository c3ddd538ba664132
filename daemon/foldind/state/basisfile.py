"""One basis in one safetensors file."""

from pathlib import Path

import torch

from foldind.checkpoints.header import read_header
from foldind.checkpoints.tensors import TensorReader, bytes_of
from foldind.errors import CheckpointRefused
from foldind.merging.basis import Basis
from foldind.state.tensorfile import TensorFileWriter, TensorSpec

_DTYPES = {torch.float32: "F32", torch.float64: "F64"}
_SPLIT_RANK = "split_rank"


def write_basis(path: Path, basis: Basis) -> None:
    """Write a basis to a new file, durably. Raises OSError."""
    factors = {"left": basis.left, "right": basis.right, "singular_values": basis.singular_values}
    specs = [
        TensorSpec(name, _DTYPES[factor.dtype], tuple(factor.shape), factor.nbytes) for name, factor in factors.items()
    ]
    with TensorFileWriter(path, specs, {_SPLIT_RANK: str(basis.split_rank)}) as writer:
        for factor in factors.values():
            writer.write(bytes_of(factor))
        writer.finish()


def read_basis(path: Path) -> Basis | None:
    """Read what `write_basis` wrote; None if it is not there, or damaged. Raises OSError: it cannot be read."""
    try:
        header = read_header(path)
        with TensorReader(path.parent) as reader:
            factors = {tensor.name: reader.read(tensor) for tensor in header.tensors}
        return Basis(factors["left"], factors["singular_values"], factors["right"], int(header.metadata[_SPLIT_RANK]))
    except (FileNotFoundError, CheckpointRefused, EOFError, KeyError, ValueError):
        return None
