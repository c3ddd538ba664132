"""Whose linear algebra computes the products and decompositions: torch's or numpy's.

Both are exact to their dtype, and which is faster depends on the processor: torch brings oneMKL, which takes slower
paths on processors of other makers, and numpy usually brings OpenBLAS. Bytes are equal with the same one only.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Backend(NamedTuple):
    """The operations that take the time; on matrices of one dtype, whatever their strides."""

    matmul: Callable[[Tensor, Tensor], Tensor]
    """(m, k), (k, n) -> (m, n)."""
    gram: Callable[[Tensor], Tensor]
    """A, (m, k) -> A^T A, (k, k)."""
    eigh: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Symmetric (k, k) -> eigenvalues, ascending, (k,), and eigenvectors in columns, (k, k). Raises LINALG_ERRORS."""


LINALG_ERRORS: tuple[type[Exception], ...] = (
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]
    np.linalg.LinAlgError,
)
"""What says that an algorithm did not converge."""


def _numpy_matmul(left: Tensor, right: Tensor) -> Tensor:
    return torch.from_numpy(left.numpy() @ right.numpy())


def _numpy_gram(matrix: Tensor) -> Tensor:
    array = matrix.numpy()
    return torch.from_numpy(array.T @ array)  # numpy sees that it is symmetric, and computes half of it


def _numpy_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    eigenvalues, vectors = np.linalg.eigh(matrix.numpy())
    return torch.from_numpy(eigenvalues), torch.from_numpy(vectors)


def _torch_gram(matrix: Tensor) -> Tensor:
    return matrix.mT @ matrix


def _torch_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return eigenvalues, vectors


TORCH = Backend(torch.matmul, _torch_gram, _torch_eigh)
NUMPY = Backend(_numpy_matmul, _numpy_gram, _numpy_eigh)

BACKENDS: Mapping[str, Backend] = MappingProxyType({"torch": TORCH, "numpy": NUMPY})
"""By the name that the configuration has for them."""
