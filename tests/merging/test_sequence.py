"""Several folds of a small model: the sum and its divisor are the paper's recursion.

How the merged model is rounded: checkpoints/test_published.py.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from foldind.merging.catalog import ACCUMULATED
from foldind.merging.publications import norm
from foldind.merging.record import Record, TensorRecord
from foldind.merging.registry import make_rule
from foldind.merging.rule import Rule
from torch import Generator, Tensor

from tests.merging import oracle
from tests.merging.matrices import CROSS_BLOCKS, random
from tests.merging.streaming import Merge

PROJECTED = ("tall", "wide", "square", "low rank")
FOLDS = 6
SEED = 15


def opcm(alpha: float = 0.5, cross_blocks: str = "keep") -> Rule:
    return make_rule("opcm", {"alpha": alpha, "cross_blocks": cross_blocks})


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
    merge = Merge(rule)
    for submission in submissions:
        merge.fold({name: submission[name] - base[name] for name in base})
        assert rule.publication.divisor is not None
        yield (
            {name: state[ACCUMULATED] for name, state in merge.states.items()},
            rule.publication.divisor(merge.record),
            {name: base[name] + update for name, update in merge.update.items()},
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
    steps = list(fold_all(opcm(alpha, cross_blocks), base, submissions))
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
    steps = fold_all(opcm(alpha, cross_blocks), base, submissions)
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


def divisor(record: Record) -> float:
    """lambda, of the publication that OPCM has by default."""
    found = norm().divisor
    assert found is not None
    return found(record)


def update(accumulated: Tensor, record: Record) -> Tensor:
    return norm().update({ACCUMULATED: accumulated}, TensorRecord(1, 1.0, 1.0), record)


class TestDivisor:
    def test_is_the_norm_over_the_mean_norm(self) -> None:
        assert divisor(Record(submissions=4, task_vector_norm_sum=2.0, accumulated_norm=3.0)) == 6.0

    def test_is_1_after_the_first_fold(self, seed: int) -> None:
        length = float(torch.rand((), generator=Generator().manual_seed(seed), dtype=torch.float64)) + 1e-9
        assert divisor(Record(1, length, length)) == 1.0

    def test_is_1_where_everything_cancels(self, seed: int) -> None:
        assert divisor(Record(2, 7.5, 0.0)) == 1.0
        rounding = 1e-7 * random(5, 4, Generator().manual_seed(seed))
        record = Record(2, 7.5, float(rounding.double().norm()))
        assert torch.equal(update(rounding, record), rounding)
        assert torch.equal(update(torch.zeros(5, 4), Record(2, 7.5, 0.0)), torch.zeros(5, 4))

    def test_mean_of_nothing_is_0(self) -> None:
        assert Record(0, 0.0, 0.0).mean_task_vector_norm == 0.0

    def test_gives_the_merged_task_vector_the_mean_norm(self, seed: int) -> None:
        accumulated = random(30, 20, Generator().manual_seed(seed)) * 7
        merged = update(accumulated, Record(3, 3 * 0.25, float(accumulated.double().norm())))
        assert float(merged.double().norm()) == pytest.approx(0.25, rel=1e-6)

    def test_is_that_of_opcm(self) -> None:
        rule = make_rule("opcm")
        record = Record(4, 2.0, 3.0)
        assert rule.publication.divisor is not None
        assert rule.publication.divisor(record) == divisor(record)
