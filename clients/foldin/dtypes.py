"""The dtypes of safetensors as numpy has them, and those that it lacks widened to ones that it has."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STORED: Mapping[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "|u1",
    "F8_E5M2": "|u1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
"""Safetensors dtype -> what numpy reads of it, for `decode`."""

_LOW_E4M3 = 2.0**8
"""What the smaller exponent bias of float8 E4M3 makes of a float16 with the same bits."""


def is_floating(dtype: str) -> bool:
    """Whether a safetensors dtype is one of floating-point numbers."""
    return dtype.startswith(("F", "BF"))


def decode(stored: "NDArray[Any]", dtype: str) -> "NDArray[Any]":
    """Return the numbers that were read as STORED says: as they are, or exactly in a wider dtype.

    Args:
      stored: (elements,), of numpy dtype STORED[dtype].
      dtype: as safetensors writes it.
    """
    match dtype:
        case "BF16":
            return (stored.astype("<u4") << 16).view(np.float32)
        case "F8_E5M2":
            return (stored.astype("<u2") << 8).view(np.float16)
        case "F8_E4M3":
            bits = stored.astype("<u2")
            values = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).view(np.float16).astype(np.float32)
            return np.where(bits & 0x7F == 0x7F, np.float32(np.nan), values * np.float32(_LOW_E4M3))
        case _:
            return stored
