"""Whether a first fold wrote what was claimed: S is tau, and the snapshot is the base plus tau."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from foldind.state.layout import ACCUMULATED, FACTORED, LEFT, RIGHT, SINGULAR_VALUES
from safetensors.torch import load_file
from torch import Tensor, finfo

from tests.mutations.bases import TIED, Base
from tests.mutations.claim import RELATIVE, Claim, exact


def compare(root: Path, base: Base, claims: Mapping[str, Claim]) -> None:
    """Raises AssertionError."""
    dense = {name: tensor.double().numpy() for name, tensor in load_file(root / "state" / ACCUMULATED).items()}
    factored = _products(root / "state" / FACTORED)
    assert dense.keys() | factored.keys() <= set(base.folded), "the state has other tensors"
    snapshot = load_file(root / "snapshot" / "model.safetensors")
    assert snapshot.keys() == base.tensors.keys(), "the snapshot has other tensors"
    folded_as = {name: name for name in base.folded} | {other: name for name in TIED for other in TIED[name]}
    for name, tensor in base.tensors.items():
        if name not in folded_as:
            assert np.array_equal(snapshot[name].numpy(), tensor.numpy()), f"{name} is not the base's"
            continue
        folded = folded_as[name]
        zero = np.zeros(tensor.shape)
        tau, error = claims.get(folded, exact(zero))
        if folded in factored:
            # By definition, directions below a millionth of the first are rounding noise (merging/basis.py).
            error = error + RELATIVE * math.sqrt(min(tensor.shape)) * np.linalg.norm(tau)
        assert_close(factored.get(folded, dense.get(folded, zero)), tau, error, f"{folded} in the state")
        assert_close(snapshot[name].double().numpy(), base.values[name] + tau, error + _rounding(tensor, tau), name)


def _products(path: Path) -> dict[str, np.ndarray]:
    parts = {name: part.double().numpy() for name, part in load_file(path).items()} if path.exists() else {}
    return {
        name: parts[name + LEFT] * parts[name + SINGULAR_VALUES] @ parts[name + RIGHT]
        for name in (key.removesuffix(LEFT) for key in parts if key.endswith(LEFT))
    }


def _rounding(base: Tensor, tau: np.ndarray) -> np.ndarray:
    limits = finfo(base.dtype)
    largest: np.ndarray = np.abs(base.double().numpy()) + np.abs(tau)
    return limits.eps * (largest + limits.smallest_normal)


def assert_close(found: np.ndarray, expected: np.ndarray, error: np.ndarray, what: str) -> None:
    off = ~(np.abs(found - expected) <= error)
    if off.any():
        place = tuple(int(index[0]) for index in np.nonzero(off)) if off.ndim else ()
        raise AssertionError(f"{what} is {found[place]} at {list(place)}, and {expected[place]} was claimed")
