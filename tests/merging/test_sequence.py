"""Several folds of a small model: the sum and its divisor are the paper's recursion, and publishing rounds once."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from foldind.merging.opcm import divisor, opcm, publish
from foldind.merging.rule import Record, Rule
from torch import Generator, Tensor

from tests.merging import oracle
from tests.merging.matrices import CROSS_BLOCKS, random

PROJECTED = ("tall", "wide", "square", "low rank")
FOLDS = 6
SEED = 15


def small_model(generator: Generator) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """A base and submissions whose differences from it are exact in float32, of different lengths."""
    shapes = {"tall": (20, 12), "wide": (8, 21), "square": (14, 14), "low rank": (24, 16), "bias": (14,), "scale": ()}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    submissions = []
    for number in range(FOLDS):
        task_vector = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        task_vector["low rank"] = random(24, 2, generator) @ random(2, 16, generator)
        submissions.append({name: base[name] + (0.1 + 0.05 * number) * task_vector[name] for name in shapes})
    return base, submissions


def as_numpy(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def relative_error(found: dict[str, Tensor], expected: dict[str, np.ndarray]) -> float:
    return oracle.norm({name: found[name].double().numpy() - expected[name] for name in expected}) / oracle.norm(
        expected
    )


def test_both_forms_of_the_oracle_are_one(seed: int) -> None:
    base, submissions = small_model(Generator().manual_seed(seed))
    arguments = as_numpy(base), [as_numpy(submission) for submission in submissions], PROJECTED
    for one, other in zip(oracle.merge_accumulated(*arguments), oracle.merge_recursively(*arguments), strict=True):
        assert one.lambda_ == pytest.approx(other.lambda_, rel=1e-9)
        for name in base:
            np.testing.assert_allclose(one.merged[name], other.merged[name], rtol=1e-8, atol=1e-9)


def fold_all(
    rule: Rule, base: dict[str, Tensor], submissions: list[dict[str, Tensor]]
) -> Iterator[tuple[dict[str, Tensor], float, dict[str, Tensor]]]:
    """Yield state, lambda and merged model after every fold."""
    accumulated = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    norm_sum = 0.0
    for count, submission in enumerate(submissions, start=1):
        task_vector = {name: submission[name] - base[name] for name in base}
        norm_sum += oracle.norm(as_numpy(task_vector))
        bases = {name: rule.decompose(accumulated[name]) for name in PROJECTED} if count > 1 else {}
        accumulated = {
            name: rule.fold(accumulated[name], task_vector[name], bases.get(name)).accumulated for name in base
        }
        lambda_ = rule.divisor(Record(count, norm_sum, oracle.norm(as_numpy(accumulated))))
        yield (
            accumulated,
            lambda_,
            {name: rule.publish(base[name].clone(), accumulated[name], lambda_) for name in base},
        )


@pytest.mark.parametrize("cross_blocks", CROSS_BLOCKS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_lambda_never_compounds(alpha: float, cross_blocks: str) -> None:
    # One fixed model: rounding of S is amplified from fold to fold where singular values nearly coincide: of forty
    # models the median is 1e-7 after six folds and the worst 1e-4, and a tight bound would fail by chance.
    base, submissions = small_model(Generator().manual_seed(SEED))
    expected = oracle.merge_recursively(
        as_numpy(base), [as_numpy(submission) for submission in submissions], PROJECTED, alpha, cross_blocks
    )
    rule = opcm(alpha, cross_blocks)  # type: ignore[arg-type]
    steps = list(fold_all(rule, base, submissions))
    for (accumulated, lambda_, merged), step in zip(steps, expected, strict=True):
        assert relative_error(accumulated, step.accumulated) <= 1e-5
        assert lambda_ == pytest.approx(step.lambda_, rel=1e-6)
        assert relative_error(merged, step.merged) <= 1e-6
    assert all(abs(lambda_ - 1) > 0.05 for _, lambda_, _ in steps[1:]), "such lambdas would not show compounding"


@pytest.mark.parametrize("cross_blocks", CROSS_BLOCKS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_every_step_is_exact_from_the_state_before_it(alpha: float, cross_blocks: str, seed: int) -> None:
    base, submissions = small_model(Generator().manual_seed(seed))
    norms: list[float] = []
    before = {name: np.zeros(tensor.shape) for name, tensor in base.items()}
    steps = fold_all(opcm(alpha, cross_blocks), base, submissions)  # type: ignore[arg-type]
    for submission, (accumulated, lambda_, merged) in zip(submissions, steps, strict=True):
        task_vector = {name: submission[name].double().numpy() - base[name].double().numpy() for name in base}
        norms.append(oracle.norm(task_vector))
        expected = {
            name: before[name]
            + (
                oracle.project(task_vector[name], before[name], alpha, cross_blocks)
                if name in PROJECTED and before[name].any()
                else task_vector[name]
            )
            for name in base
        }
        assert relative_error(accumulated, expected) <= 1e-6
        assert lambda_ == pytest.approx(oracle.norm(expected) / np.mean(norms), rel=1e-6)
        published = {name: base[name].double().numpy() + expected[name] / lambda_ for name in base}
        assert relative_error(merged, published) <= 1e-6
        before = as_numpy(accumulated)


def test_first_fold_publishes_the_submission(seed: int) -> None:
    base, submissions = small_model(Generator().manual_seed(seed))
    _, lambda_, merged = next(fold_all(opcm(), base, submissions))
    assert lambda_ == pytest.approx(1, rel=1e-15)
    assert relative_error(merged, as_numpy(submissions[0])) <= 1e-7


class TestDivisor:
    def test_is_the_norm_over_the_mean_norm(self) -> None:
        assert divisor(Record(submissions=4, task_vector_norm_sum=2.0, accumulated_norm=3.0)) == 6.0

    def test_is_1_after_the_first_fold(self, seed: int) -> None:
        length = float(torch.rand((), generator=Generator().manual_seed(seed), dtype=torch.float64)) + 1e-9
        assert divisor(Record(1, length, length)) == 1.0

    def test_is_1_where_everything_cancels(self, seed: int) -> None:
        assert divisor(Record(2, 7.5, 0.0)) == 1.0
        base = random(5, 4, Generator().manual_seed(seed))
        assert torch.equal(publish(base.clone(), torch.zeros(5, 4), divisor(Record(2, 7.5, 0.0))), base)

    def test_mean_of_nothing_is_0(self) -> None:
        assert Record(0, 0.0, 0.0).mean_task_vector_norm == 0.0

    def test_gives_the_merged_task_vector_the_mean_norm(self, seed: int) -> None:
        accumulated = random(30, 20, Generator().manual_seed(seed)) * 7
        lambda_ = divisor(Record(3, 3 * 0.25, float(accumulated.double().norm())))
        merged = publish(torch.zeros(30, 20), accumulated, lambda_)
        assert float(merged.double().norm()) == pytest.approx(0.25, rel=1e-6)


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """To nearest, ties to even, on the bits of finite float32."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


class TestPublish:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("lambda_", [1.0, 0.3, 2.7])
    def test_rounds_once_to_nearest_even(self, dtype: torch.dtype, lambda_: float, seed: int) -> None:
        generator = Generator().manual_seed(seed)
        base = random(60, 50, generator).to(dtype)
        accumulated = random(60, 50, generator) * 0.02
        merged = publish(base.clone(), accumulated, lambda_)
        assert merged.dtype == dtype
        total = base.float().numpy() + accumulated.numpy() / np.float32(lambda_)
        assert total.dtype == np.float32
        expected = {
            torch.float32: total,
            torch.bfloat16: round_to_bfloat16(total),
            torch.float16: total.astype(np.float16).astype(np.float32),
        }[dtype]
        if dtype is torch.float32:
            np.testing.assert_array_max_ulp(merged.numpy(), expected, 1)
        else:
            assert np.mean(merged.float().numpy() != expected) <= 1e-3  # a division an ulp off may cross a tie
        exact = base.double().numpy() + accumulated.double().numpy() / lambda_
        digits = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}[dtype]
        exponent = np.maximum(np.floor(np.log2(np.abs(exact))), -14 if dtype is torch.float16 else -126)
        half_ulp = 2.0 ** (exponent - digits)
        slack = 2.0 if dtype is torch.float32 else 1.001  # float32 also rounds the quotient
        error = np.abs(merged.double().numpy() - exact)
        assert (error <= slack * half_ulp + 2e-7 * np.abs(accumulated.numpy() / lambda_)).all()

    @pytest.mark.parametrize(
        ("dtype", "half_ulp"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11), (torch.float32, 2.0**-24)]
    )
    def test_ties_go_to_even(self, dtype: torch.dtype, half_ulp: float) -> None:
        base = torch.tensor([1.0, 1 + 2 * half_ulp, 1 + 4 * half_ulp, -1.0], dtype=dtype)
        accumulated = 3 * torch.tensor([half_ulp, half_ulp, half_ulp, -half_ulp])
        merged = publish(base.clone(), accumulated, 3.0)
        expected = torch.tensor([1.0, 1 + 4 * half_ulp, 1 + 4 * half_ulp, -1.0], dtype=torch.float64)
        assert torch.equal(merged.double(), expected)

    def test_bfloat16_snapshot_loses_what_the_state_keeps(self) -> None:
        base, step = torch.ones(3, dtype=torch.bfloat16), torch.full((3,), 2.0**-10)
        assert torch.equal(publish(base, step, 1.0), base)
        total = sum((step for _ in range(8)), torch.zeros(3))
        assert torch.equal(publish(base, total, 1.0).float(), torch.full((3,), 1 + 2.0**-7))

    def test_too_large_for_float16_shows_as_infinite(self) -> None:
        merged = publish(torch.tensor([60000.0], dtype=torch.float16), torch.tensor([10000.0]), 1.0)
        assert math.isinf(float(merged))
