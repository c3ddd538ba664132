"""Compressed task vectors written down straight: an encoder and a decoder that share nothing with the project's."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

BLOCK = 2**20
METADATA = {"format": "pt", "foldin.kind": "compressed_task_vector"}


class Parts(NamedTuple):
    """What is stored of coded tensors."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def __or__(self, other: "Parts") -> "Parts":  # type: ignore[override]
        return Parts(self.tensors | other.tensors, self.metadata | other.metadata)

    def file(self) -> bytes:
        return save(self.tensors, metadata=METADATA | self.metadata)


def pack(coding: str, symbols: np.ndarray) -> bytes:
    """A block before it is entropy-coded."""
    if coding == "int8":
        return symbols.astype(np.int8).tobytes()
    packed = bytearray()
    for first in range(0, len(symbols), 5):
        packed.append(sum(int(symbol) % 3 * 3**place for place, symbol in enumerate(symbols[first : first + 5])))
    return bytes(packed)


def of_blocks(name: str, coding: str, shape: tuple[int, ...], scales: Tensor, blocks: list[bytes]) -> Parts:
    """A coded tensor of zlib streams as they are given."""
    return Parts(
        {
            f"{name}:codes": torch.tensor(list(b"".join(blocks)), dtype=torch.uint8),
            f"{name}:lengths": torch.tensor([len(block) for block in blocks]).to(torch.uint32),
            f"{name}:scales": scales,
        },
        {f"{name}:coding": f"{coding} {','.join(map(str, shape))}"},
    )


def coded(name: str, coding: str, symbols: Tensor, scales: Tensor) -> Parts:
    """A coded tensor that is in order."""
    flat = symbols.reshape(-1).numpy()
    blocks = [zlib.compress(pack(coding, flat[first : first + BLOCK])) for first in range(0, len(flat), BLOCK)]
    return of_blocks(name, coding, tuple(symbols.shape), scales, blocks)


def block_of_bytes(name: str, shape: tuple[int, ...], packed: bytes) -> Parts:
    """A ternary tensor of one block, which is packed as it is given."""
    return of_blocks(name, "ternary", shape, torch.tensor(0.5), [zlib.compress(packed)])


def decode(path: Path) -> dict[str, np.ndarray]:
    """The task vectors that a file holds, float64."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata["foldin.kind"] == "compressed_task_vector"

    def stored(name: str) -> bytes:
        first, last = header[name]["data_offsets"]
        return content[8 + length + first : 8 + length + last]

    found = {}
    for name, entry in header.items():
        if ":" not in name:
            assert entry["dtype"] == "BF16"
            bits = np.frombuffer(stored(name), "<u2").astype("<u4") << 16
            found[name] = bits.view("<f4").astype(np.float64).reshape(entry["shape"])
    for key, told in metadata.items():
        if key.endswith(":coding"):
            name = key.removesuffix(":coding")
            coding, sizes = told.split()
            found[name] = _decode(coding, [int(size) for size in sizes.split(",")], name, stored, header)
    return found


def _decode(coding, shape, name, stored, header: Mapping) -> np.ndarray:  # type: ignore[no-untyped-def, type-arg]
    elements, codes, symbols = int(np.prod(shape)), stored(f"{name}:codes"), []
    for length in np.frombuffer(stored(f"{name}:lengths"), "<u4").tolist():
        packed, codes = zlib.decompress(codes[:length]), codes[length:]
        if coding == "int8":
            symbols += np.frombuffer(packed, np.int8).tolist()
        else:
            digits = [byte // 3**place % 3 for byte in packed for place in range(5)]
            symbols += [-1 if digit == 2 else digit for digit in digits[: min(BLOCK, elements - len(symbols))]]
    assert not codes
    scales = np.frombuffer(stored(f"{name}:scales"), "<f4").astype(np.float64)
    assert header[f"{name}:scales"]["shape"] == shape[: len(header[f"{name}:scales"]["shape"])]
    return (np.array(symbols, np.float64).reshape(len(scales), -1) * scales[:, None]).reshape(shape)
