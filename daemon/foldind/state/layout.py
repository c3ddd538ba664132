"""How the accumulated state holds each tensor; known without reading any."""

from enum import StrEnum
from pathlib import Path

from foldind.checkpoints.header import read_header

ACCUMULATED = "accumulated.safetensors"
"""The dense tensors, by their names, float32."""
FACTORED = "factored.safetensors"
"""Those of low rank, as thin SVDs; three tensors each."""

LEFT, SINGULAR_VALUES, RIGHT = ".left", ".singular_values", ".right"
"""What their names end with. Singular values of zero are room that was not needed."""


class Representation(StrEnum):
    """How a tensor is held."""

    ZERO = "zero"
    """Not at all: nothing was merged into it."""
    FACTORED = "factored"
    DENSE = "dense"


def dense_tensors(folder: Path) -> frozenset[str]:
    """Return which tensors the state in a folder holds dense.

    Raises:
      CheckpointRefused, OSError: it is damaged, or gone.
    """
    return frozenset(tensor.name for tensor in read_header(folder / ACCUMULATED).tensors)
