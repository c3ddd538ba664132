"""Task vectors as symbols and scales, in blocks that are packed and entropy-coded.

The layout is described in daemon/foldind/checkpoints/README.md. Source of the ternary coding: Yadav et al. 2023,
ComPEFT, arXiv 2311.13171, with the scale that makes the squared error least.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_ELEMENTS = 2**20
_TRITS = 5
_STEPS = 127
_LEAST_ROW = 64
"""Elements that share a scale of int8, at the least, in tensors of three and more dimensions."""


class Coded(NamedTuple):
    """What is stored of a tensor."""

    scales: "NDArray[np.float32]"
    """Of the shape of its leading dimensions."""
    blocks: Iterator[bytes]
    """Made one by one."""


def encode_ternary(task_vector: "NDArray[np.float32]", density: float) -> Coded:
    """Keep the signs of the largest elements, as many as the density says, and their mean magnitude.

    Of equal magnitudes the first ones are kept. Zeros are not kept, whatever the density.

    Args:
      task_vector: (elements,), finite, not all zero.
      density: share of the elements that are kept, in (0, 1]; one at the least.
    """
    magnitudes = np.abs(task_vector)
    count = max(1, round(density * len(task_vector)))
    magnitudes.partition(len(task_vector) - count)
    threshold = magnitudes[len(task_vector) - count]
    at_threshold = count - int((magnitudes[-count:] > threshold).sum()) if threshold else 0
    del magnitudes

    def chosen() -> "Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]":
        left = at_threshold
        for first in range(0, len(task_vector), BLOCK_ELEMENTS):
            block = task_vector[first : first + BLOCK_ELEMENTS]
            size = np.abs(block)
            kept, equal = size > threshold, np.flatnonzero(size == threshold)[:left]
            kept[equal] = True
            left -= len(equal)
            yield block, kept

    total = kept_count = 0.0
    for block, kept in chosen():
        total += float(np.abs(block[kept]).sum(dtype=np.float64))
        kept_count += int(kept.sum())
    return Coded(
        np.array(total / kept_count, np.float32),
        (_deflate(_pack_ternary(np.where(kept, np.sign(block), 0).astype(np.int8))) for block, kept in chosen()),
    )


def encode_int8(task_vector: "NDArray[np.float32]", shape: Sequence[int]) -> Coded:
    """Round every element to a multiple of its row's scale, the row's largest magnitude divided by 127.

    A row is one of a matrix; of stacked matrices and convolutions it has so many dimensions that it is not too short.

    Args:
      task_vector: (elements,), finite.
      shape: of the tensor.
    """
    leading = max([1, *(depth for depth in range(2, len(shape)) if math.prod(shape[depth:]) >= _LEAST_ROW)])
    width = math.prod(shape[leading:])
    rows = task_vector.reshape(-1, width)
    scales = (np.maximum(rows.max(axis=1), -rows.min(axis=1)) / np.float32(_STEPS)).astype(np.float32)

    def blocks() -> Iterator[bytes]:
        for first in range(0, len(task_vector), BLOCK_ELEMENTS):
            block = task_vector[first : first + BLOCK_ELEMENTS]
            of_row = scales[np.arange(first, first + len(block)) // width]
            steps = np.rint(block / np.where(of_row > 0, of_row, 1))
            yield _deflate(steps.clip(-_STEPS, _STEPS).astype(np.int8).tobytes())

    return Coded(scales.reshape(shape[:leading]), blocks())


def _pack_ternary(symbols: "NDArray[np.int8]") -> bytes:
    digits = np.zeros(-(-len(symbols) // _TRITS) * _TRITS, np.uint8)
    digits[: len(symbols)] = symbols % 3
    packed = np.zeros(len(digits) // _TRITS, np.uint8)
    for place in reversed(range(_TRITS)):
        packed = packed * 3 + digits[place::_TRITS]
    return packed.tobytes()


def _deflate(packed: bytes) -> bytes:
    # Nothing repeats but runs, of rows that did not change; where there are none, looking for them costs a few percent.
    return min((_deflated(packed, strategy) for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)), key=len)


def _deflated(packed: bytes, strategy: int) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return compressor.compress(packed) + compressor.flush()
