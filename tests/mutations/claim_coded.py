"""What a compressed task vector claims: checkpoints/README.md, line by line."""

import math
import re
import zlib

import numpy as np
from torch import Tensor

from tests.mutations.claim import Contradiction, File
from tests.support.compressed import BLOCK


def decoded(file: File) -> dict[str, np.ndarray | Tensor]:
    """The tensors of a file: the coded ones float64, the plain ones as they are."""
    left = dict(file.tensors)
    found: dict[str, np.ndarray | Tensor] = {}
    for key, told in file.metadata.items():
        if key.endswith(":coding"):
            name = key.removesuffix(":coding")
            try:
                codes, lengths, scales = (left.pop(f"{name}:{part}").numpy() for part in ("codes", "lengths", "scales"))
            except KeyError as error:
                raise Contradiction(f"{name} lacks {error}") from error
            found[name] = _decoded(told, codes, lengths, scales)
    if stray := [name for name in left if name.endswith((":codes", ":lengths", ":scales"))]:
        raise Contradiction(f"{stray} belong to no coded tensor")
    if twice := left.keys() & found.keys():
        raise Contradiction(f"{twice} are plain and coded")
    return found | left


def _decoded(told: str, codes: np.ndarray, lengths: np.ndarray, scales: np.ndarray) -> np.ndarray:
    if (match := re.fullmatch(r"(ternary|int8) ((?:[1-9][0-9]*,)*[1-9][0-9]*)", told)) is None:
        raise Contradiction(f"the coding is {told!r}")
    if (codes.dtype, lengths.dtype, scales.dtype) != (np.uint8, np.uint32, np.float32):
        raise Contradiction("the parts have other dtypes")
    shape = tuple(map(int, match[2].split(",")))
    elements = math.prod(shape)
    if codes.ndim != 1 or lengths.shape != (-(-elements // BLOCK),) or scales.shape != shape[: scales.ndim]:
        raise Contradiction("the parts have other shapes")
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise Contradiction("a scale is none")
    if int(lengths.sum(dtype=np.int64)) != len(codes):
        raise Contradiction("the blocks have gaps")
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    symbols = [
        _symbols(match[1], codes[end - length : end].tobytes(), min(BLOCK, elements - BLOCK * number))
        for number, (end, length) in enumerate(zip(ends, lengths.tolist(), strict=True))
    ]
    rows = np.concatenate(symbols).astype(np.float64).reshape(scales.size, -1)
    return (rows * scales.astype(np.float64).reshape(-1, 1)).reshape(shape)


def _symbols(coding: str, stream: bytes, elements: int) -> np.ndarray:
    decoder = zlib.decompressobj()
    try:
        packed = decoder.decompress(stream)
    except zlib.error as error:
        raise Contradiction(f"a block is no stream: {error}") from error
    if not decoder.eof or decoder.unused_data or len(packed) != (elements if coding == "int8" else -(-elements // 5)):
        raise Contradiction("a block is not one stream of its elements")
    if coding == "int8":
        symbols = np.frombuffer(packed, np.int8)
        if (symbols == -128).any():
            raise Contradiction("there is no symbol -128")
        return symbols
    digits = np.array([[byte // 3**place % 3 for place in range(5)] for byte in packed]).reshape(-1)
    if max(packed) > 242 or digits[elements:].any():
        raise Contradiction("a byte is no five ternary digits")
    return np.where(digits == 2, -1, digits)[:elements]
