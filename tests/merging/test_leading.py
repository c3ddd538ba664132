"""The leading part of a matrix against numpy's SVD in float64."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from foldind.merging.backend import BACKENDS
from foldind.merging.leading import leading_part
from foldind.merging.rule import Factored
from torch import Generator, Tensor


def chunked(matrix: Tensor, rows: int) -> Iterator[Tensor]:
    return iter(matrix.split(rows))


def product(part: Factored) -> np.ndarray:
    left, singular_values, right = (values.double().numpy() for values in part)
    return left * singular_values @ right


def best(matrix: Tensor, rank: int) -> np.ndarray:
    left, singular_values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    return left[:, :rank] * singular_values[:rank] @ right[:rank]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "rank"), [((70, 40), 7), ((40, 40), 40), ((300, 5), 3), ((9, 2), 64)])
def test_it_is_the_best_approximation(backend: str, shape: tuple[int, int], rank: int, seed: int) -> None:
    matrix = torch.randn(shape, generator=Generator().manual_seed(seed)) * torch.linspace(1, 3, shape[1])
    part = leading_part(lambda: chunked(matrix, 32), rank, BACKENDS[backend])
    expected = best(matrix, rank)
    assert np.linalg.norm(product(part) - expected) <= 1e-6 * np.linalg.norm(expected)
    singular_values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[:rank]
    np.testing.assert_allclose(part.singular_values.numpy(), singular_values, rtol=1e-6)
    kept = len(part.singular_values)
    for columns in (part.left.double(), part.right.double().mT):
        torch.testing.assert_close(columns.mT @ columns, torch.eye(kept, dtype=torch.float64), rtol=0, atol=1e-5)


def test_a_rank_that_is_not_there(seed: int) -> None:
    generator = Generator().manual_seed(seed)
    matrix = torch.randn(60, 3, generator=generator) @ torch.randn(3, 30, generator=generator)
    part = leading_part(lambda: chunked(matrix, 16), 10)
    assert len(part.singular_values) == 3
    assert np.linalg.norm(product(part) - matrix.double().numpy()) <= 1e-6 * float(matrix.norm())


def test_a_column_order_of_its_own(seed: int) -> None:
    """The columns of a wide matrix are handed over as rows that do not lie one after the other."""
    wide = torch.randn(20, 90, generator=Generator().manual_seed(seed))
    part = leading_part(lambda: iter([wide[:, :50].mT, wide[:, 50:].mT]), 4)
    assert np.linalg.norm(product(part) - best(wide.mT, 4)) <= 1e-6 * float(wide.norm())


def test_nothing() -> None:
    left, singular_values, right = leading_part(lambda: iter([torch.zeros(6, 4)]), 3)
    assert (left.shape, singular_values.shape, right.shape) == ((6, 0), (0,), (0, 4))
