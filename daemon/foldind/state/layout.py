"""How the accumulated state holds each tensor; known without reading any."""

import errno
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path

from foldind.checkpoints.header import TensorInfo, read_header
from foldind.errors import CheckpointRefused, InvalidRequest
from foldind.merging.catalog import RECORDED, parse_publication

ACCUMULATED = "accumulated.safetensors"
"""The dense tensors of the sum, by their names, float32. Other slots of a rule have a file each, named like them."""
FACTORED = "factored.safetensors"
"""Tensors of the sum that are of low rank, as thin SVDs; three tensors each."""
RECORDS = "records.json"
"""What is known of each tensor besides."""

LEFT, SINGULAR_VALUES, RIGHT = ".left", ".singular_values", ".right"
"""What their names end with. Singular values of zero are room that was not needed."""


class Representation(StrEnum):
    """How a tensor is held."""

    ZERO = "zero"
    """Not at all: nothing was merged into it."""
    FACTORED = "factored"
    DENSE = "dense"


def slot_file(slot: str) -> str:
    """Return the name of the file that has a slot of the dense tensors."""
    return f"{slot}.safetensors"


def dense_tensors(folder: Path) -> frozenset[str]:
    """Return which tensors the state in a folder holds dense. Raises OSError."""
    return frozenset(tensors_in(folder / ACCUMULATED))


def tensors_in(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a file of the state by name. Raises OSError: it is damaged, or gone."""
    try:
        return {tensor.name: tensor for tensor in read_header(path).tensors}
    except (CheckpointRefused, FileNotFoundError) as error:
        raise OSError(errno.EIO, "the accumulated state is damaged or gone; see `foldind fsck`", str(path)) from error


def check_recorded(publication: str, rule: str, state_files: Collection[str]) -> None:
    """Check that a state knows what it takes to publish it in this way.

    Raises:
      InvalidRequest: an earlier Foldin began it, and did not keep what each tensor's task vectors were like.
    """
    if parse_publication(publication, rule).name in RECORDED and RECORDS not in state_files:
        raise InvalidRequest(
            f"publishing as {publication!r} needs the norms of each tensor, which this state was begun without",
            "publish it as 'foldin', 'iso' or 'power', or begin a new state folder",
        )
