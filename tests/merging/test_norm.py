"""Norms and inner products, against float64."""

import math

import pytest
import torch
from foldind.merging.norm import frobenius_inner, frobenius_norm
from torch import Generator

SHAPES = ((), (0,), (1,), (7,), (1023,), (1024,), (1025,), (3, 5, 7), (64, 1024), (65, 1024), (300, 701))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e-8, 1.0, 1e8, 1e30])
def test_are_those_of_float64(shape: tuple[int, ...], scale: float, seed: int) -> None:
    generator = Generator().manual_seed(seed)
    one, other = (torch.randn(shape, generator=generator) * scale for _ in range(2))
    length = float(one.double().norm())
    assert frobenius_norm(one) == pytest.approx(length, rel=1e-7)
    exact = float((one.double() * other.double()).sum())
    assert abs(frobenius_inner(one, other) - exact) <= 1e-7 * length * float(other.double().norm())


def test_millions_of_elements_lose_nothing(seed: int) -> None:
    values = torch.rand(30_000_000, generator=Generator().manual_seed(seed)).add_(0.5)
    assert frobenius_norm(values) == pytest.approx(float(values.double().norm()), rel=1e-8)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1023, 1024, 2999])
def test_one_element_that_is_not_finite_shows(value: float, position: int) -> None:
    values = torch.ones(3000)
    values[position] = value
    assert not math.isfinite(frobenius_norm(values))


def test_large_elements_are_finite() -> None:
    assert frobenius_norm(torch.full((2000,), 3e38)) == pytest.approx(3e38 * 2000**0.5)


def test_views_and_other_dtypes(seed: int) -> None:
    values = torch.randn(60, 50, generator=Generator().manual_seed(seed))
    assert frobenius_norm(values.mT) == pytest.approx(float(values.double().norm()), rel=1e-7)
    halves = values.bfloat16()
    assert frobenius_norm(halves) == pytest.approx(float(halves.double().norm()), rel=1e-7)
