"""What a submission claims, read by the safetensors library and in straight lines: the oracle of the mutations."""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
from foldind.checkpoints.checkpoint import INDEX
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tests.mutations.bases import IGNORE, TIED, Base
from tests.support.wire import SINGLE

RELATIVE = 1e-6
SMALLEST = 2.0**-149
"""Of float32: what is smaller is rounded to it, or to nothing."""


class Contradiction(Exception):
    """It claims nothing that can be merged, or two things at once: it had to be refused."""


class Claim(NamedTuple):
    """A task vector, float64."""

    values: np.ndarray
    error: np.ndarray
    """How far each element may be off: one part in a million of what it is computed from."""


class File(NamedTuple):
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def load(path: Path) -> File:
    try:
        with safe_open(path, "pt") as file:
            return File({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise Contradiction(f"the safetensors library refuses {path.name}: {error}") from error


def load_model(folder: Path) -> tuple[str, list[File]]:
    """The kind of a submission that is no adapter, and its files."""
    names = [SINGLE]
    if (folder / INDEX).exists():
        weight_map = json.loads((folder / INDEX).read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
    files = [load(folder / name) for name in names]
    kinds = {file.metadata.get("foldin.kind", "model") for file in files}
    if len(kinds) > 1:
        raise Contradiction(f"its files are of several kinds: {kinds}")
    if (folder / INDEX).exists():
        held = {tensor: name for name, file in zip(names, files, strict=True) for tensor in file.tensors}
        if held != weight_map:
            raise Contradiction("its index says something else than its shards")
    return kinds.pop(), files


def exact(values: np.ndarray) -> Claim:
    """A task vector of which each element is rounded once."""
    return Claim(values, RELATIVE * np.abs(values) + SMALLEST)


def of_model(tensors: Mapping[str, Tensor], base: Base, *, partial: bool) -> dict[str, Claim]:
    """What the tensors of a fine-tuned model differ by."""
    found = of_names(tensors, base)
    if not partial and (missing := set(base.folded) - found.keys()):
        raise Contradiction(f"it is a whole model without {missing}")
    return {name: exact(values - base.values[name]) for name, values in found.items()}


def of_names(tensors: Mapping[str, Tensor | np.ndarray], base: Base) -> dict[str, np.ndarray]:
    """The tensors by the names under which they are folded, float64."""
    for name in tensors:
        if name not in base.tensors and not ignored(name):
            raise Contradiction(f"the base has no {name!r}")
    found = {}
    for name in base.folded:
        values = [
            tensor.double().numpy() if isinstance(tensor, Tensor) else tensor
            for tensor in (tensors.get(other) for other in (name, *TIED.get(name, ())))
            if tensor is not None
        ]
        if any(one.shape != base.values[name].shape for one in values):
            raise Contradiction(f"{name} has another shape in the base")
        if any(not np.array_equal(values[0], other) for other in values[1:]):
            raise Contradiction(f"{name} has several values")
        if values:
            found[name] = values[0]
    return found


def ignored(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in IGNORE)
