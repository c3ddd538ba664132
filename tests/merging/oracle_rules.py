"""Every merge rule but OPCM by its batch definition, all task vectors of one tensor at once, in float64.

Written from the papers, with plain loops, and sharing no line with foldind.merging. DARE takes its masks as given.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def average(task_vectors: Sequence[Array]) -> Array:
    """Model soups: the mean."""
    return sum(task_vectors[1:], task_vectors[0]) / len(task_vectors)


def task_arithmetic(task_vectors: Sequence[Array], factor: float) -> Array:
    """Ilharco et al. 2023: factor times the sum."""
    return factor * sum(task_vectors[1:], task_vectors[0])


def trim(task_vector: Array, density: float, outliers: float = 0.0) -> Array:
    """Keep the share `density` of the elements, by magnitude, below the share `outliers` of the largest.

    And all that are as large as the smallest or the largest of these, as the authors of TIES do.
    """
    magnitudes = sorted((abs(float(value)) for value in task_vector.flat), reverse=True)
    elements = task_vector.size
    kept = max(1, int(density * elements))
    top = min(int(outliers * elements), elements - kept)
    largest, smallest = magnitudes[top], magnitudes[top + kept - 1]
    trimmed = np.zeros(task_vector.shape)
    for index in np.ndindex(task_vector.shape):
        if smallest <= abs(task_vector[index]) <= largest:
            trimmed[index] = task_vector[index]
    return trimmed


def ties(task_vectors: Sequence[Array], density: float, factor: float = 1.0) -> Array:
    """Yadav et al. 2023: trim, elect, disjoint mean."""
    trimmed = [trim(task_vector, density) for task_vector in task_vectors]
    merged = np.zeros(trimmed[0].shape)
    for index in np.ndindex(merged.shape):
        values = [float(one[index]) for one in trimmed]
        elected = 1 if sum(values) >= 0 else -1
        agreeing = [value for value in values if value * elected > 0]
        merged[index] = factor * sum(agreeing) / len(agreeing) if agreeing else 0.0
    return merged


def contested(task_vectors: Sequence[Array], density: float, share: float = 1e-6) -> NDArray[np.bool_]:
    """Elements of TIES whose positive and negative mass cancel to rounding: which sign is elected is chance."""
    trimmed = np.stack([trim(task_vector, density) for task_vector in task_vectors])
    return np.abs(trimmed.sum(0)) <= share * np.abs(trimmed).sum(0)


def dare(task_vectors: Sequence[Array], masks: Sequence[NDArray[np.bool_]], density: float, factor: float) -> Array:
    """Yu et al. 2024: drop, stretch, sum."""
    dropped = [mask * task_vector / density for task_vector, mask in zip(task_vectors, masks, strict=True)]
    return task_arithmetic(dropped, factor)


def breadcrumbs(task_vectors: Sequence[Array], density: float, outliers: float, factor: float) -> Array:
    """Davari and Belilovsky 2024: mask both tails of each, sum."""
    return task_arithmetic([trim(task_vector, density, outliers) for task_vector in task_vectors], factor)


def magmax(task_vectors: Sequence[Array], factor: float) -> Array:
    """Marczak et al. 2024: per element the task vector of the largest magnitude, of two equal ones the positive."""
    merged = np.zeros(task_vectors[0].shape)
    for index in np.ndindex(merged.shape):
        merged[index] = factor * max((float(one[index]) for one in task_vectors), key=lambda value: (abs(value), value))
    return merged


def model_stock(task_vectors: Sequence[Array]) -> Array:
    """Jang et al. 2024: the mean, times t = N cos / (1 + (N - 1) cos), cos the mean of all pairs."""
    count = len(task_vectors)
    if count == 1:
        return task_vectors[0]
    pairs = list(combinations(task_vectors, 2))
    cosine = sum(float((a * b).sum()) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs) / len(pairs)
    if cosine <= 0:  # they point apart: their mean points nowhere
        return np.zeros(task_vectors[0].shape)
    return count * cosine / (1 + (count - 1) * cosine) * average(task_vectors)


def regression(task_vectors: Sequence[Array], eps: float) -> Array:
    """The minimiser of sum_i c_i ||(X - tau_i) tau_i^T||^2 + rho ||X - mean||^2, as one least-squares problem."""
    columns = task_vectors[0].shape[1]
    weights = [1 / np.linalg.norm(one) ** 2 for one in task_vectors]
    rho = eps * sum(weight * np.linalg.norm(one) ** 2 for weight, one in zip(weights, task_vectors, strict=True))
    rho /= columns
    left = [weight**0.5 * one for weight, one in zip(weights, task_vectors, strict=True)]
    right = [weight**0.5 * one @ one.T for weight, one in zip(weights, task_vectors, strict=True)]
    left.append(rho**0.5 * np.eye(columns))
    right.append(rho**0.5 * average(task_vectors).T)
    return np.linalg.lstsq(np.vstack(left), np.vstack(right), rcond=None)[0].T


def scaled_to(total: Array, length: float) -> Array:
    """A sum made as long as this."""
    return total * (length / np.linalg.norm(total))


def root_mean_square(task_vectors: Sequence[Array]) -> float:
    """Of the norms of the task vectors that are not zero."""
    squares = [float((one**2).sum()) for one in task_vectors if one.any()]
    return (sum(squares) / len(squares)) ** 0.5


def with_spectrum(total: Array, values: Sequence[float]) -> Array:
    """A sum with other singular values, in its own singular vectors, triple by triple."""
    left, _, right = np.linalg.svd(total, full_matrices=False)
    return sum((value * np.outer(left[:, i], right[i]) for i, value in enumerate(values)), np.zeros(total.shape))


def iso_c(total: Array, factor: float) -> Array:
    """Marczak et al. 2025, Iso-C: all singular values at their mean."""
    values = np.linalg.svd(total, compute_uv=False)
    return with_spectrum(total, [factor * float(values.mean())] * len(values))


def power(total: Array, exponent: float, length: float) -> Array:
    """Singular values to a power, the whole as long as this; exponent 0: flat."""
    values = np.linalg.svd(total, compute_uv=False) ** exponent
    return with_spectrum(total, list(values * (length / np.linalg.norm(values))))
