"""The tensors of a model on this machine, read in blocks as float32, without torch."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foldin.checkpoint import CheckpointFile
from foldin.dtypes import STORED, decode
from foldin.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOATS = ("F32", "F16", "BF16")
"""Safetensors dtypes that are merged."""

KIND = "foldin.kind"
"""The entry of a file's metadata that says that it holds no whole model."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
      dtype: as safetensors writes it.
      start: offset of its first byte in the file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def elements(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    @property
    def merged(self) -> bool:
        """Whether it is of a dtype that is merged."""
        return self.dtype in FLOATS

    def read(self, first: int, last: int) -> "NDArray[np.float32]":
        """Return elements [first, last), row by row, (last - first,) float32, in memory of the caller's own.

        Raises:
          CheckpointError: the file is shorter than its header said.
          OSError: it cannot be read.
        """
        kind = np.dtype(STORED[self.dtype])
        values = np.fromfile(self.path, kind, last - first, offset=self.start + first * kind.itemsize)
        if len(values) != last - first:
            raise CheckpointError(f"{self.path} became shorter while it was read: submit it again once it is whole.")
        return decode(values, self.dtype).astype(np.float32, copy=False)


def read_tensors(files: Sequence[CheckpointFile]) -> dict[str, StoredTensor]:
    """Return the tensors of a model that was found whole: name -> where it lies, in the order of the names.

    Raises:
      CheckpointError: the files hold something else than a model.
      OSError: they cannot be read.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        if not file.name.endswith(".safetensors"):
            continue
        with file.path.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        if kind := (header.pop("__metadata__", None) or {}).get(KIND):
            raise CheckpointError(f"{file.path} holds no model but a {kind}: submit it as it is, without --compress.")
        for name, entry in header.items():
            start = 8 + length + entry["data_offsets"][0]
            tensors[name] = StoredTensor(file.path, entry["dtype"], tuple(entry["shape"]), start)
    return dict(sorted(tensors.items()))


def as_bfloat16(values: "NDArray[np.float32]") -> bytes:
    """Return finite values as bfloat16, rounded to nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
