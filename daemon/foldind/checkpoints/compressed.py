"""A compressed task vector: what is in it, by its headers, and the small numbers that its blocks are read by.

The layout is described in README.md of this folder.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.coding import ANEW, BLOCK_ELEMENTS, Coding, most_coded_bytes
from foldind.checkpoints.header import Header, TensorInfo, read_blocks
from foldind.errors import CheckpointRefused

CODING = ":coding"
"""Ends the key of metadata that tells a coded tensor's coding and shape: `ternary 384,1536`."""
CODES = ":codes"
LENGTHS = ":lengths"
SCALES = ":scales"
"""End the names of the three tensors that a coded one is stored as."""

_DTYPES = {CODES: "U8", LENGTHS: "U32", SCALES: "F32"}
_TOLD = re.compile(rf"({'|'.join(Coding)}) ([1-9]\d{{0,18}}(?:,[1-9]\d{{0,18}}){{0,15}})", re.ASCII)


@dataclass(frozen=True, slots=True)
class CodedTensor:
    """A tensor of which symbols and scales are stored; each element is its symbol times its scale."""

    name: str
    """In the base."""
    coding: Coding
    shape: tuple[int, ...]
    codes: TensorInfo
    """(bytes,) uint8: one zlib stream for each block."""
    lengths: TensorInfo
    """(blocks,) uint32: bytes of each."""
    scales: TensorInfo
    """float32, of the shape of the tensor's leading dimensions, or () for one scale."""

    @property
    def dtype(self) -> str:
        """What it is decoded to."""
        return "F32"

    @property
    def blocks(self) -> int:
        """How many there are."""
        return -(-math.prod(self.shape) // BLOCK_ELEMENTS)

    @property
    def row_elements(self) -> int:
        """How many elements each row of the first dimension has."""
        return math.prod(self.shape[1:])

    def block_elements(self, block: int) -> int:
        """Return how many elements a block has."""
        return min(BLOCK_ELEMENTS, math.prod(self.shape) - block * BLOCK_ELEMENTS)


def read_compressed(checkpoint: Checkpoint) -> dict[str, TensorInfo | CodedTensor]:
    """Return what a compressed task vector has: name in the base -> the tensor, coded or as it is.

    Raises:
      CheckpointRefused: its headers do not describe one.
    """
    found: dict[str, TensorInfo | CodedTensor] = {}
    for header in checkpoint.headers.values():
        for tensor in _of_file(header):
            if tensor.name in found:
                raise CheckpointRefused(f"tensor {tensor.name!r} is in it twice", ANEW)
            found[tensor.name] = tensor
    return found


def check_numbers(folder: Path, tensors: Mapping[str, TensorInfo | CodedTensor]) -> None:
    """Check the lengths of the blocks and the scales; the codes are not read.

    Args:
      folder: of the submission.
      tensors: of a shape that was checked: so many numbers are read.

    Raises:
      CheckpointRefused: a length cannot be right, or a scale is no scale.
      OSError: they cannot be read.
    """
    import numpy as np

    for tensor in tensors.values():
        if isinstance(tensor, CodedTensor):
            read_offsets(folder, tensor)
            for piece in read_blocks(folder / tensor.scales.file, tensor.scales):
                scales = np.frombuffer(piece, "<f4")
                if not (np.isfinite(scales) & (scales >= 0)).all():
                    raise CheckpointRefused(
                        f"tensor {tensor.name!r} has a scale that is negative, infinite or NaN", ANEW
                    )


def read_offsets(folder: Path, tensor: CodedTensor) -> list[int]:
    """Return where each block begins in the codes, and where the last one ends.

    Raises:
      CheckpointRefused: a length cannot be right.
      OSError: they cannot be read.
    """
    import numpy as np

    offsets = [0]
    for piece in read_blocks(folder / tensor.lengths.file, tensor.lengths):
        for length in np.frombuffer(piece, "<u4").tolist():
            block = len(offsets) - 1
            most = most_coded_bytes(tensor.coding, tensor.block_elements(block))
            if not 0 < length <= most:
                raise CheckpointRefused(
                    f"block {block} of tensor {tensor.name!r} is {length} bytes long, and 1 to {most} are possible",
                    ANEW,
                )
            offsets.append(offsets[-1] + length)
    if offsets[-1] != tensor.codes.nbytes:
        raise CheckpointRefused(
            f"the blocks of tensor {tensor.name!r} take {offsets[-1]} bytes, and it has {tensor.codes.nbytes}", ANEW
        )
    return offsets


def _of_file(header: Header) -> Iterator[TensorInfo | CodedTensor]:
    parts = {tensor.name: tensor for tensor in header.tensors}
    told = {key.removesuffix(CODING): text for key, text in header.metadata.items() if key.endswith(CODING)}
    for name, text in told.items():
        coded = [parts.pop(name + ending, None) for ending in _DTYPES]
        yield _coded(name[:500], text, *coded)
    for name, tensor in parts.items():
        if any(name.endswith(ending) for ending in _DTYPES):
            raise CheckpointRefused(
                f"it has {name!r} without {name.rpartition(':')[0] + CODING!r} in its metadata", ANEW
            )
        yield tensor


def _coded(
    name: str, text: str, codes: TensorInfo | None, lengths: TensorInfo | None, scales: TensorInfo | None
) -> CodedTensor:
    match = _TOLD.fullmatch(text)
    if match is None:
        raise CheckpointRefused(
            f"the coding of tensor {name!r} is {text[:80]!r}",
            f"it is one of {', '.join(Coding)}, a space, and the shape, as in 'ternary 384,1536'",
        )
    if codes is None or lengths is None or scales is None:
        raise CheckpointRefused(f"the codes, the lengths or the scales of tensor {name!r} are missing", ANEW)
    for part, dtype in zip((codes, lengths, scales), _DTYPES.values(), strict=True):
        if part.dtype != dtype:
            raise CheckpointRefused(f"{part.name!r} has dtype {part.dtype} in place of {dtype}", ANEW)
    shape = tuple(int(size) for size in match[2].split(","))
    tensor = CodedTensor(name, Coding(match[1]), shape, codes, lengths, scales)
    if lengths.shape != (tensor.blocks,):
        raise CheckpointRefused(
            f"tensor {name!r} has lengths of shape {list(lengths.shape)}, and its {math.prod(shape)} elements make "
            f"{tensor.blocks} blocks",
            ANEW,
        )
    if len(codes.shape) != 1:
        raise CheckpointRefused(f"{codes.name!r} has shape {list(codes.shape)}, and codes have one dimension", ANEW)
    if scales.shape != shape[: len(scales.shape)]:
        raise CheckpointRefused(
            f"tensor {name!r} of shape {list(shape)} has scales of shape {list(scales.shape)}, which is no leading "
            "part of it",
            ANEW,
        )
    return tensor
