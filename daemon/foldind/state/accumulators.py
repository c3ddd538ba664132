"""The accumulated state on disk, tensor by tensor in the representation that takes the least."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from foldind.checkpoints.header import ITEM_BYTES
from foldind.checkpoints.plan import PlannedTensor
from foldind.checkpoints.tensors import TensorReader, bytes_of
from foldind.merging.catalog import ACCUMULATED as SUM
from foldind.merging.catalog import Slot
from foldind.merging.rule import Factored, State
from foldind.state.durable import FileDigest
from foldind.state.layout import (
    ACCUMULATED,
    FACTORED,
    LEFT,
    RIGHT,
    SINGULAR_VALUES,
    Representation,
    slot_file,
    tensors_in,
)
from foldind.state.tensorfile import TensorFileWriter, TensorSpec


class AccumulatedState:
    """Reads it block by block; S is its sum. A context manager; may be read from several threads at once.

    Args:
      folder: where it lies.
      slots: what the rule keeps besides the sum.
    """

    def __init__(self, folder: Path, slots: Sequence[str] = ()):
        self._dense = tensors_in(folder / ACCUMULATED)
        self._slots = {slot: tensors_in(folder / slot_file(slot)) for slot in slots}
        self._factored = tensors_in(folder / FACTORED) if (folder / FACTORED).exists() else {}
        self._reader = TensorReader(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)

    def representation(self, tensor: str) -> Representation:
        """Return how a tensor of S is held."""
        if tensor in self._dense:
            return Representation.DENSE
        return Representation.FACTORED if tensor + SINGULAR_VALUES in self._factored else Representation.ZERO

    def rank(self, tensor: str) -> int:
        """Return the rank that a factored tensor has at the most, or 0."""
        values = self._factored.get(tensor + SINGULAR_VALUES)
        return values.shape[0] if values else 0

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a tensor that is not zero."""
        if dense := self._dense.get(tensor):
            return dense.shape
        return self._factored[tensor + LEFT].shape[0], self._factored[tensor + RIGHT].shape[1]

    def read(self, tensor: str, rows: tuple[int, int] | None) -> Tensor:
        """Return the rows [first, last) of a tensor of S that is not zero, or all of it. Raises OSError."""
        if dense := self._dense.get(tensor):
            return self._reader.read(dense, rows)
        left, singular_values, right = (self._part(tensor, part) for part in (LEFT, SINGULAR_VALUES, RIGHT))
        first, last = rows or (0, len(left))
        return (left[first:last] * singular_values.float()) @ right

    def read_state(self, tensor: str, rows: tuple[int, int] | None) -> State:
        """Return every slot of a tensor that is not zero, as `read` does. Raises OSError."""
        state = {SUM: self.read(tensor, rows)}
        for slot, tensors in self._slots.items():
            if held := tensors.get(tensor):
                # What is not as tall as the tensor is read with the whole of it only.
                tall = held.shape[:1] == self._dense[tensor].shape[:1]
                state[slot] = self._reader.read(held, rows if tall else None)
        return state

    def factors(self, tensor: str) -> Factored:
        """Return a factored tensor of S. Raises OSError."""
        left, singular_values, right = (self._part(tensor, part) for part in (LEFT, SINGULAR_VALUES, RIGHT))
        rank = int((singular_values > 0).sum())
        return Factored(left[:, :rank], singular_values[:rank], right[:rank])

    def _part(self, tensor: str, part: str) -> Tensor:
        return self._reader.read(self._factored[tensor + part])


class Place(NamedTuple):
    """Where a tensor of a new state goes."""

    tensor: PlannedTensor
    representation: Representation
    rank: int
    """If factored: at the most."""
    slots: Mapping[str, Slot]
    """If dense: what is kept of it."""


class StateWriter:
    """Writes a new state, tensor by tensor in the order announced. A context manager; see TensorFileWriter.

    Args:
      folder: where to.
      places: of the tensors.
      slots: what the rule keeps besides the sum; each has a file, whatever is in it.
    """

    def __init__(self, folder: Path, places: Sequence[Place], slots: Sequence[str] = ()):
        factored = [place for place in places if place.representation is Representation.FACTORED]
        specs = {
            slot_file(slot): [
                _spec(place.tensor.name, place.slots[slot])
                for place in places
                if place.representation is Representation.DENSE and slot in place.slots
            ]
            for slot in (SUM, *slots)
        }
        if factored:
            specs[FACTORED] = [spec for place in factored for spec in _factored_specs(place)]
        self._open = ExitStack()
        with self._open:
            self._files = {
                name: self._open.enter_context(TensorFileWriter(folder / name, tensors, {}))
                for name, tensors in specs.items()
            }
            self._open = self._open.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def write_dense(self, block: State) -> None:
        """Append the next block of the next dense tensor, all its slots. Raises OSError."""
        for slot, values in block.items():
            self._files[slot_file(slot)].write(bytes_of(values))

    def write_factored(self, place: Place, factored: Factored) -> None:
        """Write the next factored tensor. Raises OSError."""
        room = place.rank - len(factored.singular_values)
        for part in (
            torch.nn.functional.pad(factored.left, (0, room)),
            torch.nn.functional.pad(factored.singular_values, (0, room)),
            torch.nn.functional.pad(factored.right, (0, 0, 0, room)),
        ):
            self._files[FACTORED].write(bytes_of(part))

    def finish(self) -> dict[str, FileDigest]:
        """Make the files durable, and return their digests. Raises OSError."""
        return {name: file.finish() for name, file in self._files.items()}


def factored_bytes(shape: tuple[int, int], rank: int) -> int:
    """Return what a matrix takes as factors of a rank."""
    return ITEM_BYTES["F32"] * rank * sum(shape) + ITEM_BYTES["F64"] * rank


def _spec(name: str, slot: Slot) -> TensorSpec:
    return TensorSpec(name, slot.dtype, slot.shape, ITEM_BYTES[slot.dtype] * math.prod(slot.shape))


def _factored_specs(place: Place) -> list[TensorSpec]:
    (m, n), rank, name = place.tensor.shape, place.rank, place.tensor.name
    return [
        _spec(name + LEFT, Slot((m, rank), "F32")),
        _spec(name + SINGULAR_VALUES, Slot((rank,), "F64")),
        _spec(name + RIGHT, Slot((rank, n), "F32")),
    ]
