"""The algorithm as the paper writes it: float64, full SVD, one loop a sum. Shares no line with foldind.merging.

Everything is a numpy float64 array. One choice is the design's and not the paper's: singular values at or below 2e-7 of
the largest are rounding noise of the stored float32 state and count as zero.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ZERO = 2e-7


class Merge(NamedTuple):
    """A model after one fold of a sequence."""

    accumulated: dict[str, Array]
    lambda_: float
    merged: dict[str, Array]


def split_rank(singular_values: Sequence[float], alpha: float) -> int:
    """r: the first index, from 0, at which the share of the singular-value mass exceeds alpha."""
    total = sum(singular_values)
    running = 0.0
    for index, value in enumerate(singular_values):
        running += value
        if running / total > alpha:
            return index
    return max(len(singular_values) - 1, 0)


def spectrum(accumulated: Array) -> list[float]:
    """The singular values that are not zero."""
    values = np.linalg.svd(accumulated, compute_uv=False)
    return [float(value) for value in values if value > ZERO * values[0]]


def project(task_vector: Array, accumulated: Array, alpha: float, cross_blocks: str) -> Array:
    """P(tau; S): tau in the complete bases (m, m) and (n, n) of S, without the cut blocks and the diagonal."""
    values = spectrum(accumulated)
    r = split_rank(values, alpha)
    left, _, right_transposed = np.linalg.svd(accumulated, full_matrices=True)
    rotated = left.T @ task_vector @ right_transposed.T
    rows, columns = rotated.shape
    for i in range(rows):
        for j in range(columns):
            taken = (i < r or j < r) if cross_blocks == "drop" else (i < r and j < r)
            if taken or (i == j and i < len(values)):
                rotated[i, j] = 0.0
    return left @ rotated @ right_transposed


def project_leading(task_vector: Array, accumulated: Array, alpha: float, cross_blocks: str) -> Array:
    """tau without what is taken, and then without its component along the rest of S."""
    values = spectrum(accumulated)
    r = split_rank(values, alpha)
    left, _, right_transposed = np.linalg.svd(accumulated, full_matrices=False)
    rows, columns = left[:, :r] @ left[:, :r].T, right_transposed[:r].T @ right_transposed[:r]
    if cross_blocks == "drop":
        projected = task_vector - rows @ task_vector - task_vector @ columns + rows @ task_vector @ columns
    else:
        projected = task_vector - rows @ task_vector @ columns
    rest = accumulated - (left[:, :r] * values[:r]) @ right_transposed[:r]
    return projected - (projected * rest).sum() / (rest * rest).sum() * rest


def project_in_basis(task_vector: Array, left: Array, right: Array, r: int, cross_blocks: str) -> Array:
    """P(tau; S) for a given basis, U (m, q) and V (n, q), summand by summand; for an S whose own is not unique."""
    if cross_blocks == "drop":
        taken_left = sum((np.outer(left[:, i], left[:, i]) for i in range(r)), np.zeros((len(left), len(left))))
        taken_right = sum((np.outer(right[:, i], right[:, i]) for i in range(r)), np.zeros((len(right), len(right))))
        projected = (np.eye(len(left)) - taken_left) @ task_vector @ (np.eye(len(right)) - taken_right)
    else:
        projected = task_vector.copy()
        for i in range(r):
            for j in range(r):
                coefficient = left[:, i] @ task_vector @ right[:, j]
                projected -= coefficient * np.outer(left[:, i], right[:, j])
    for i in range(r, left.shape[1]):
        projected -= (left[:, i] @ task_vector @ right[:, i]) * np.outer(left[:, i], right[:, i])
    return projected


def norm(tensors: Mapping[str, Array]) -> float:
    """Frobenius norm of a whole model."""
    return sum(float((tensor.astype(np.float64) ** 2).sum()) for tensor in tensors.values()) ** 0.5


def merge_accumulated(
    base: Mapping[str, Array],
    submissions: Sequence[Mapping[str, Array]],
    projected: Collection[str],
    alpha: float = 0.5,
    cross_blocks: str = "keep",
) -> list[Merge]:
    """Every step of a sequence by the accumulated form: a sum, and one divisor."""
    accumulated = {name: np.zeros(tensor.shape) for name, tensor in base.items()}
    norms: list[float] = []
    steps = []
    for submission in submissions:
        task_vector = {name: submission[name].astype(np.float64) - base[name].astype(np.float64) for name in base}
        norms.append(norm(task_vector))
        accumulated = {
            name: accumulated[name]
            + _update(task_vector[name], accumulated[name], alpha, cross_blocks, name in projected)
            for name in base
        }
        lambda_ = norm(accumulated) / (sum(norms) / len(norms))
        merged = {name: base[name].astype(np.float64) + accumulated[name] / lambda_ for name in base}
        steps.append(Merge(accumulated, lambda_, merged))
    return steps


def merge_recursively(
    base: Mapping[str, Array],
    submissions: Sequence[Mapping[str, Array]],
    projected: Collection[str],
    alpha: float = 0.5,
    cross_blocks: str = "keep",
) -> list[Merge]:
    """Every step by the paper's recursion, which rescales the merged task vector each time.

    theta_t = theta_0 + (lambda_{t-1} D_{t-1} + P(tau_t; D_{t-1})) / lambda_t with D_t = theta_t - theta_0.
    """
    lambda_ = 1.0
    merged_vector = {name: np.zeros(tensor.shape) for name, tensor in base.items()}
    norms: list[float] = []
    steps = []
    for submission in submissions:
        task_vector = {name: submission[name].astype(np.float64) - base[name].astype(np.float64) for name in base}
        norms.append(norm(task_vector))
        numerator = {
            name: lambda_ * merged_vector[name]
            + _update(task_vector[name], merged_vector[name], alpha, cross_blocks, name in projected)
            for name in base
        }
        lambda_ = norm(numerator) / (sum(norms) / len(norms))
        merged_vector = {name: numerator[name] / lambda_ for name in base}
        merged = {name: base[name].astype(np.float64) + merged_vector[name] for name in base}
        steps.append(Merge(numerator, lambda_, merged))
    return steps


def _update(task_vector: Array, merged: Array, alpha: float, cross_blocks: str, projected: bool) -> Array:
    return project(task_vector, merged, alpha, cross_blocks) if projected and merged.any() else task_vector
