"""Sketches: linear, the same for ever, and unbiased, with the spread that is claimed."""

import hashlib
import math

import pytest
import torch
from foldind.merging.rule import LowRank
from foldind.merging.sketch import WIDTH, sketch, sketch_factored
from torch import Generator, Tensor

SHAPES = ((), (1,), (7,), (5000,), (1, 9), (9, 1), (30, 5000), (700, 33), (1000, 70), (40, 3, 7, 7), (5, 64, 96))
NAMES = 300


def whole(name: str, values: Tensor) -> Tensor:
    return sketch(name, values.shape, 0, values).double()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_a_signed_sum_of_every_element(shape: tuple[int, ...], generator: Generator) -> None:
    values = torch.randn(shape, generator=generator)
    expected = torch.zeros(WIDTH, dtype=torch.float64)
    some = torch.randperm(values.numel(), generator=generator)[:200].tolist()
    picked = torch.zeros_like(values)
    for element in some:
        one = torch.zeros_like(values)
        one.view(-1)[element] = 1
        sign = whole("tensor", one)
        assert sign.abs().sum() == sign.abs().max() == 1
        expected += float(values.view(-1)[element]) * sign
        picked.view(-1)[element] = values.view(-1)[element]
    torch.testing.assert_close(whole("tensor", picked), expected, rtol=0, atol=1e-5)
    difference = whole("tensor", values) - whole("tensor", values - picked)
    torch.testing.assert_close(difference, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape], ids=str)
def test_of_row_blocks_add_up(shape: tuple[int, ...], generator: Generator) -> None:
    values = torch.randn(shape, generator=generator)
    expected = whole("tensor", values)
    for _ in range(10):
        cuts = sorted(torch.randint(0, shape[0] + 1, (4,), generator=generator).tolist())
        total = torch.zeros(WIDTH, dtype=torch.float64)
        for first, last in zip([0, *cuts], [*cuts, shape[0]], strict=True):
            if first < last:
                total += sketch("tensor", shape, first, values[first:last])
        torch.testing.assert_close(total, expected, rtol=0, atol=1e-4)


def test_of_factors_is_that_of_their_product(generator: Generator) -> None:
    for m, n in ((50, 40), (500, 300), (33, 900), (40_003, 1500)):  # the last one not at once
        up, down = torch.randn(4, m, generator=generator).mT, torch.randn(4, n, generator=generator)
        found = sketch_factored("tensor", (m, n), LowRank(up, down))
        expected = whole("tensor", up @ down)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4 * float(expected.norm()))


def test_is_the_same_for_ever() -> None:
    """What ledgers hold was made with these signs: another sum here makes all of it worthless."""
    digest = hashlib.sha256()
    for shape in SHAPES:
        values = (torch.arange(math.prod(shape)) % 13 - 6).float().reshape(shape)  # sums of them are exact
        digest.update(sketch("encoder.größe.weight", shape, 0, values).numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == "4e401940758128db2287df76dad1504829a1749e4a71376e0df8cba85b6d97ae"


def structured(kind: str, generator: Generator) -> tuple[Tensor, Tensor]:
    """Two task vectors of one tensor, of unit norm and cosine 0.6."""
    shape = {"vector": (70_000,), "column": (20_000, 5), "conv": (64, 32, 5, 5)}.get(kind, (512, 160))
    one, other = torch.randn(2, *shape, generator=generator).double()
    match kind:
        case "one row":
            one[1:], other[1:] = 0, 0
        case "one column" | "column":
            one[:, 1:], other[:, 1:] = 0, 0
        case "rank one":
            one, other = (torch.outer(values[:, 0], values[0]) for values in (one, other))
        case "some rows":
            one[64:], other[64:] = 0, 0
        case "constant":
            one = torch.ones(shape).double()
    one /= one.norm()
    other -= (one * other).sum() * one
    return one.float(), (0.6 * one + 0.8 * other / other.norm()).float()


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        ("random", math.inf),
        ("vector", math.inf),
        ("conv", math.inf),
        ("one row", math.inf),
        ("some rows", 4 * 160),
        ("column", 20_000 / 16),
        ("one column", 512 / 16),
        ("rank one", 512 / 16),
        ("constant", 512 / 16),
    ],
)
def test_is_unbiased_with_the_spread_that_is_claimed(kind: str, cells: float, seed: int) -> None:
    one, other = structured(kind, Generator().manual_seed(seed))
    sketches = [(whole(f"{seed} {number}", one), whole(f"{seed} {number}", other)) for number in range(NAMES)]
    inner = torch.stack([(x * y).sum() for x, y in sketches])
    cosine = inner / torch.stack([x.norm() * y.norm() for x, y in sketches])
    exact = float((one.double() * other.double()).sum())
    assert exact == pytest.approx(0.6, abs=1e-6)
    assert abs(float(inner.mean()) - exact) < 5 * float(inner.std()) / math.sqrt(NAMES) + 1e-7
    spread = math.sqrt(1 / WIDTH + 1 / cells)
    assert float(inner.std()) < 1.25 * math.sqrt(1 + exact**2) * spread
    assert float((cosine - exact).square().mean().sqrt()) < 1.25 * (1 - exact**2) * spread


def test_tensors_of_different_names_share_no_signs(seed: int) -> None:
    values = torch.randn(600, 100, generator=Generator().manual_seed(seed))
    found = torch.stack([whole(f"{seed} layer.{number}", values) for number in range(60)])
    cosines = torch.corrcoef(found)[~torch.eye(60, dtype=torch.bool)]
    assert float(cosines.square().mean().sqrt()) < 1.25 / math.sqrt(WIDTH)
