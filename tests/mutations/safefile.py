"""A safetensors file taken apart and put together again, sound or not."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tests.hostile.files import craft

FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Safetensors dtype -> numpy's; of bfloat16 the bits."""


class Stored(NamedTuple):
    """A tensor as it is in the file."""

    name: str
    dtype: str
    shape: list[int]
    data: bytes


class SafeFile(NamedTuple):
    tensors: list[Stored]
    """In the order of their bytes."""
    metadata: dict[str, str]

    def content(self) -> bytes:
        """The file, its header as long as its tensors say."""
        entries: dict[str, Any] = {"__metadata__": self.metadata} if self.metadata else {}
        end = 0
        for tensor in self.tensors:
            start, end = end, end + len(tensor.data)
            entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
        return craft(entries, b"".join(tensor.data for tensor in self.tensors))


def header_of(content: bytes) -> tuple[dict[str, Any], bytes] | None:
    """The header and the data; None: it has no header that is JSON."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length].decode())
    except (ValueError, RecursionError):
        return None
    return (header, content[8 + length :]) if isinstance(header, dict) else None


def take_apart(content: bytes) -> SafeFile | None:
    """None: its header does not fit its data."""
    if (found := header_of(content)) is None:
        return None
    header, data = found
    metadata = header.pop("__metadata__", {})
    tensors = []
    try:
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            tensors.append((first, Stored(name, entry["dtype"], entry["shape"], data[first:last])))
    except (TypeError, KeyError, ValueError):
        return None
    if not isinstance(metadata, dict) or not all(isinstance(first, int) for first, _ in tensors):
        return None
    return SafeFile([tensor for _, tensor in sorted(tensors, key=lambda found: found[0])], metadata)


def as_float32(tensor: Stored) -> np.ndarray:
    """The elements of a floating-point tensor, in a row."""
    whole = (
        tensor.data[: len(tensor.data) // 4 * 4] if tensor.dtype == "F32" else tensor.data[: len(tensor.data) // 2 * 2]
    )
    raw = np.frombuffer(whole, FLOATS[tensor.dtype])
    return (raw.astype("<u4") << 16).view("<f4") if tensor.dtype == "BF16" else raw.astype("<f4")


def from_float32(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":  # rounded towards zero, but for NaN, of which that might make an infinity
        bits = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
        return np.where(np.isnan(values), np.uint16(0x7FC0), bits).astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        return values.astype(FLOATS[dtype]).tobytes()


def replaced(tensors: Sequence[Stored], number: int, **fields: Any) -> list[Stored]:
    """The tensors, some fields of one changed."""
    return [tensor._replace(**fields) if at == number else tensor for at, tensor in enumerate(tensors)]
