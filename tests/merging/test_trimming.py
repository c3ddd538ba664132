"""Trimming by magnitude: how many elements are left, and which of those that are equal."""

import pytest
import torch
from foldind.merging.registry import make_rule
from foldind.merging.trimming import between, largest
from torch import Generator

from tests.merging import oracle_rules
from tests.merging.streaming import Merge

SHAPES = ((), (1,), (7,), (30, 20), (6, 3, 4, 4), (0, 5))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [1.0, 0.9, 0.5, 0.2, 1e-9])
@pytest.mark.parametrize("outliers", [0.0, 0.01, 0.3, 0.999])
def test_is_that_of_the_oracle(shape: tuple[int, ...], density: float, outliers: float, generator: Generator) -> None:
    task_vector = torch.randn(shape, generator=generator)
    left = between(task_vector, density, outliers)
    if task_vector.numel():
        expected = oracle_rules.trim(task_vector.double().numpy(), density, outliers)
        assert torch.equal(left.double(), torch.as_tensor(expected))
    assert left.shape == shape
    if outliers == 0:
        assert torch.equal(largest(task_vector, density), left)


@pytest.mark.parametrize("outliers", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("density", [0.9, 0.5, 0.2, 1e-9])
def test_of_equal_magnitudes_all_are_left(density: float, outliers: float) -> None:
    """As of a bias that moved by one step of its dtype: to leave none of it would lose the whole task vector."""
    task_vector = torch.tensor([0.5, -0.5]).repeat(10)
    assert torch.equal(between(task_vector, density, outliers), task_vector)


def test_equal_magnitudes_at_the_threshold(generator: Generator) -> None:
    values = torch.tensor([4.0, -3.0, 2.0, -2.0, 2.0, 1.0, -1.0, 0.0, 0.0, 0.0])
    order = torch.randperm(10, generator=generator)
    found = largest(values[order], 0.4)
    assert torch.equal(found, torch.where(values.abs() >= 2, values, 0.0)[order]), "which, does not depend on the order"
    assert torch.equal(between(values, 0.4, 0.1), torch.where(values.abs() == 4, 0.0, largest(values, 0.5)))


def test_sparse_task_vectors_keep_what_they_have() -> None:
    task_vector = torch.zeros(100)
    task_vector[:3] = torch.tensor([1.0, -2.0, 3.0])
    assert torch.equal(largest(task_vector, 0.2), task_vector)


@pytest.mark.parametrize("density", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_at_least_the_share_is_left_of_coarse_task_vectors(
    dtype: torch.dtype, density: float, generator: Generator
) -> None:
    base = torch.randn(60, 50, generator=generator).to(dtype)
    tuned = (base.float() + 0.005 * torch.randn(60, 50, generator=generator)).to(dtype)
    task_vector = tuned.float() - base.float()
    found = largest(task_vector, density)
    needed = min(int(density * task_vector.numel()), int((task_vector != 0).sum()))
    assert int((found != 0).sum()) >= needed
    smallest_left = found[found != 0].abs().min()
    dropped = task_vector[(found == 0) & (task_vector != 0)].abs()
    assert not len(dropped) or dropped.max() < smallest_left


@pytest.mark.parametrize("rule", ["ties", "breadcrumbs"])
def test_a_constant_task_vector_is_merged(rule: str) -> None:
    task_vector = torch.full((64,), 0.01)
    merge = Merge(make_rule(rule, {"density": 0.2}))
    for _ in range(2):
        merge.fold({"b": task_vector})
    assert merge.update["b"].count_nonzero() == 64
