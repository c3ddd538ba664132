"""The plan: how each tensor of the base is treated by a fold. Made once, from the base, and stored with the state."""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.header import ITEM_BYTES, TensorInfo, read_blocks
from foldind.errors import CheckpointRefused

FLOAT_DTYPES = frozenset({"F32", "BF16", "F16"})
"""What can be merged."""

SUMMED_PATTERNS = (
    "*embed*",
    "*wte.weight",
    "*wpe.weight",
    "*position*",
    "shared.weight",
    "*.shared.weight",
    "*relative_attention_bias*",
    "*A_log",
    "*bias",
)
"""Names of 2-D tensors that are no linear layers: embeddings, position tables, state-space matrices, stacked biases."""

_NEVER_TIED = ("*A_log", "*bias*")
"""Summed tensors that are equal in all layers of a new model by their initialisation, and part in fine-tuning."""


_EXPONENT_BITS = {"F32": ("<u4", 0x7F800000), "BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00)}
"""Safetensors dtype -> integers of its size, and the bits that are all set in an infinity and in NaN."""


class Treatment(StrEnum):
    """What a fold does with a tensor."""

    PROJECTED = "projected"
    """The weight of a linear layer: its task vector is projected orthogonally to what is merged."""
    SUMMED = "summed"
    """Everything else that is trained: its task vectors are summed."""
    FROZEN = "frozen"
    """What cannot be merged (integers, other dtypes, masks with infinite elements): copied from the base."""
    TIED = "tied"
    """The same tensor as another one: folded once, under the other's name, and written in both places."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the base and its treatment."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    treatment: Treatment
    tied_to: str = ""
    """The name it is folded under, if TIED."""

    @property
    def folded(self) -> bool:
        """Whether the accumulated state has a tensor of this name."""
        return self.treatment in (Treatment.PROJECTED, Treatment.SUMMED)


@dataclass(frozen=True)
class Plan:
    """The treatment of every tensor, in the order of the base's files and bytes."""

    tensors: tuple[PlannedTensor, ...]

    @cached_property
    def by_name(self) -> dict[str, PlannedTensor]:
        """Tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    @cached_property
    def folded(self) -> tuple[PlannedTensor, ...]:
        """The tensors that the accumulated state has."""
        return tuple(tensor for tensor in self.tensors if tensor.folded)

    @cached_property
    def tied_names(self) -> dict[str, tuple[str, ...]]:
        """Name of a folded tensor -> the other names of it."""
        names = defaultdict(list)
        for tensor in self.tensors:
            if tensor.treatment is Treatment.TIED:
                names[tensor.tied_to].append(tensor.name)
        return {name: tuple(others) for name, others in names.items()}

    @cached_property
    def float32_bytes(self) -> int:
        """What all tensors take in float32."""
        return sum(ITEM_BYTES["F32"] * math.prod(tensor.shape) for tensor in self.tensors)

    def published_bytes(self, forms: Collection[str], adapter_rank: int) -> int:
        """Return what is published of a merge, at the most.

        Args:
          forms: `model`, `adapter`, or both.
          adapter_rank: that the adapter may have; 0: any.
        """
        model = sum(ITEM_BYTES[tensor.dtype] * math.prod(tensor.shape) for tensor in self.tensors)
        shapes = [tensor.shape for tensor in self.folded]
        highest = max((min(shape) for shape in shapes if len(shape) == 2), default=0)
        rank = min(adapter_rank or highest, highest)  # one for all factors
        numbers = (rank * sum(shape) if _is_matrix(shape) else math.prod(shape) for shape in shapes)
        adapter = ITEM_BYTES["F32"] * sum(numbers)
        return ("model" in forms) * model + ("adapter" in forms) * adapter

    def to_json(self) -> str:
        """Return the plan as a JSON document, one tensor a line."""
        lines = ",\n".join("  " + json.dumps(asdict(tensor)) for tensor in self.tensors)
        return f'{{"format": 1, "tensors": [\n{lines}\n]}}\n'

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """Read what `to_json` wrote."""
        return cls(tuple(_planned(entry) for entry in json.loads(text)["tensors"]))


def make_plan(base: Checkpoint, summed_patterns: Sequence[str] = SUMMED_PATTERNS) -> Plan:
    """Decide the treatment of every tensor of the base.

    Args:
      base: the base.
      summed_patterns: shell-style patterns of names that are never projected.

    Raises:
      CheckpointRefused: it is not a whole model.
      OSError: the base cannot be read (tied tensors are found by their bytes).
    """
    if base.is_adapter:
        raise CheckpointRefused(
            f"{base.folder.name} holds an adapter, and a base is a whole model",
            "give the model that the adapter was trained on",
        )
    tied = _find_tied(base, summed_patterns)
    return Plan(
        tuple(
            PlannedTensor(tensor.name, tensor.dtype, tensor.shape, Treatment.TIED, tied[tensor.name])
            if tensor.name in tied
            else PlannedTensor(tensor.name, tensor.dtype, tensor.shape, _treatment(base, tensor, summed_patterns))
            for tensor in base.tensors.values()
        )
    )


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a tensor's name matches one of the shell-style patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_matrix(shape: Sequence[int]) -> bool:
    return len(shape) == 2 and min(shape) > 1


def _treatment(base: Checkpoint, tensor: TensorInfo, summed_patterns: Sequence[str]) -> Treatment:
    if tensor.dtype not in FLOAT_DTYPES or not _is_finite(base.folder / tensor.file, tensor):
        return Treatment.FROZEN
    # Stacked experts are one matrix each; other 3-D tensors are convolutions.
    matrix = len(tensor.shape) == 2 or (len(tensor.shape) == 3 and "experts" in tensor.name)
    if matrix and min(tensor.shape[-2:]) > 1 and not matches_any(tensor.name, summed_patterns):
        return Treatment.PROJECTED
    return Treatment.SUMMED


def _find_tied(base: Checkpoint, summed_patterns: Sequence[str]) -> dict[str, str]:
    alike = defaultdict(list)
    for tensor in base.tensors.values():
        table = _is_matrix(tensor.shape) and not matches_any(tensor.name, _NEVER_TIED)
        if tensor.dtype in FLOAT_DTYPES and table:
            alike[tensor.dtype, tensor.shape].append(tensor)
    equal = defaultdict(list)
    for tensors in alike.values():
        if len(tensors) > 1:
            for tensor in tensors:
                if content := _content(base.folder / tensor.file, tensor):
                    equal[content].append(tensor.name)
    tied = {}
    for names in equal.values():
        # An embedding that doubles as the output layer is an embedding. Linear layers that are equal to each other are
        # not tied: experts and layers that were copied in the base part in fine-tuning.
        if first := next((name for name in names if matches_any(name, summed_patterns)), ""):
            tied.update({name: first for name in names if name != first})
    return tied


def _content(path: Path, tensor: TensorInfo) -> str | None:
    """Return the digest of a tensor's bytes; none where all elements are equal, which is no sign of being tied."""
    digest, constant, first = sha256(), True, b""
    for block in read_blocks(path, tensor):
        first = first or block[: ITEM_BYTES[tensor.dtype]]
        constant = constant and block == first * (len(block) // len(first))
        digest.update(block)
    return None if constant else f"{tensor.dtype} {tensor.shape} {digest.hexdigest()}"


def _is_finite(path: Path, tensor: TensorInfo) -> bool:
    import numpy as np  # only where a plan is made: the daemon reads it ready-made

    bits, exponent = _EXPONENT_BITS[tensor.dtype]
    return not any(
        bool((np.frombuffer(block, bits) & exponent == exponent).any()) for block in read_blocks(path, tensor)
    )


def _planned(entry: dict[str, Any]) -> PlannedTensor:
    return PlannedTensor(
        entry["name"], entry["dtype"], tuple(entry["shape"]), Treatment(entry["treatment"]), entry["tied_to"]
    )
