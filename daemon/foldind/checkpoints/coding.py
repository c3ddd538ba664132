"""The symbols of compressed task vectors: how a block of them is packed, and unpacked within bounds.

The layout is described in README.md of this folder.
"""

import zlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

from foldind.errors import CheckpointRefused

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK_ELEMENTS = 2**20
"""Elements of a block; the last one of a tensor may have fewer."""

ANEW = "compress it anew with `foldin submit --compress`"
"""What to do with a compressed task vector that is refused."""

_TRITS = 5
"""To a byte: 3**5 = 243 values."""


class Coding(StrEnum):
    """How the elements of a tensor are coded."""

    TERNARY = "ternary"
    """0, 1 or -1 (as 0, 1, 2), five to a byte."""
    INT8 = "int8"
    """-127 to 127, each a byte."""


def packed_bytes(coding: Coding, elements: int) -> int:
    """Return the length of a block before it is entropy-coded."""
    return -(-elements // _TRITS) if coding is Coding.TERNARY else elements


def most_coded_bytes(coding: Coding, elements: int) -> int:
    """Return what a block takes at the most: compressors write no zlib stream much longer than its content."""
    packed = packed_bytes(coding, elements)
    return packed + packed // 8 + 64


def decode_block(coding: Coding, coded: bytes | memoryview, elements: int, where: str) -> "NDArray[np.int8]":
    """Return the symbols of a block, (elements,) int8, in memory that is bounded by their number.

    Args:
      coding: of the tensor.
      coded: a zlib stream.
      elements: that the block has.
      where: what it is, for errors.

    Raises:
      CheckpointRefused: it is not exactly one stream of so many symbols.
    """
    return _UNPACK[coding](_inflate(coded, packed_bytes(coding, elements), where), elements, where)


def _inflate(coded: bytes | memoryview, length: int, where: str) -> bytes:
    stream = zlib.decompressobj()
    try:
        packed = stream.decompress(coded, length + 1)  # one more than is right: enough to know a bomb by
    except zlib.error as error:
        raise CheckpointRefused(f"{where} is no zlib stream or a damaged one ({error})", ANEW) from error
    if len(packed) > length:
        raise CheckpointRefused(f"{where} decodes to more than the {length} bytes that its elements take", ANEW)
    if not stream.eof:
        raise CheckpointRefused(f"{where} ends before its zlib stream does", ANEW)
    if len(packed) < length:
        raise CheckpointRefused(
            f"{where} decodes to {len(packed)} bytes, and its elements take {length}",
            ANEW,
        )
    if stream.unused_data:
        raise CheckpointRefused(f"{where} has {len(stream.unused_data)} bytes after its zlib stream", ANEW)
    return packed


def _unpack_ternary(packed: bytes, elements: int, where: str) -> "NDArray[np.int8]":
    import numpy as np  # here and below only where values are read: the daemon starts without it

    values = np.frombuffer(packed, np.uint8)
    if (largest := int(values.max())) >= 3**_TRITS:
        raise CheckpointRefused(f"{where} has the byte {largest}, and five ternary digits make 242 at the most", ANEW)
    digits = np.arange(3**_TRITS)[:, None] // 3 ** np.arange(_TRITS) % 3
    symbols = np.where(digits == 2, -1, digits).astype(np.int8)[values].reshape(-1)
    if symbols[elements:].any():
        raise CheckpointRefused(f"{where} has elements after its last", ANEW)
    return symbols[:elements]


def _unpack_int8(packed: bytes, elements: int, where: str) -> "NDArray[np.int8]":
    import numpy as np

    symbols = np.frombuffer(packed, np.int8, elements)
    if symbols.min() < -127:
        raise CheckpointRefused(f"{where} has the symbol -128, and symbols are -127 to 127", ANEW)
    return symbols


_UNPACK: Mapping[Coding, Callable[[bytes, int, str], "NDArray[np.int8]"]] = {
    Coding.TERNARY: _unpack_ternary,
    Coding.INT8: _unpack_int8,
}
