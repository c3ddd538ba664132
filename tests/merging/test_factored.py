"""Folds of what is of low rank, against the same folds of the matrices multiplied out."""

import numpy as np
import pytest
import torch
from foldind.merging.additive import task_vector_sum
from foldind.merging.catalog import ACCUMULATED
from foldind.merging.opcm import opcm
from foldind.merging.registry import make_rule
from foldind.merging.rule import Factored, FoldedFactored, LowRank, Step
from torch import Generator, Tensor

from tests.merging import oracle
from tests.merging.matrices import CROSS_BLOCKS

SHAPES = ((40, 24), (24, 40), (30, 30), (7, 60), (60, 7))
RANK = 3


def factors(shape: tuple[int, int], generator: Generator, rank: int = RANK) -> LowRank:
    return LowRank(torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator))


def nothing(shape: tuple[int, int]) -> Factored:
    return Factored(torch.empty(shape[0], 0), torch.empty(0, dtype=torch.float64), torch.empty(0, shape[1]))


def dense(basis: Factored) -> Tensor:
    return basis.left.double() * basis.singular_values @ basis.right.double()


def relative(found: Tensor, expected: object) -> float:
    exact = torch.as_tensor(expected).double()
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("projection", ["exact", "leading"])
@pytest.mark.parametrize("cross_blocks", CROSS_BLOCKS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
def test_each_fold_is_that_of_the_oracle(
    shape: tuple[int, int], projection: str, cross_blocks: str, alpha: float, seed: int
) -> None:
    generator = Generator().manual_seed(seed)
    fold_factored = opcm(alpha, cross_blocks, projection).fold_factored  # type: ignore[arg-type]
    assert fold_factored is not None
    oracle_project = oracle.project_leading if projection == "leading" else oracle.project
    accumulated = nothing(shape)
    for number in range(4):
        handed_in = factors(shape, generator)
        task_vector = (handed_in.up.double() @ handed_in.down.double()).numpy()
        before = dense(accumulated).numpy()
        folded = fold_factored(accumulated, handed_in, project=True, max_rank=0)
        projected = oracle_project(task_vector, before, alpha, cross_blocks) if number else task_vector
        assert relative(dense(folded.accumulated), before + projected) <= 1e-6
        assert folded.task_vector_norm == pytest.approx(np.linalg.norm(task_vector), rel=1e-9)
        removed = np.linalg.norm(task_vector - projected) ** 2
        assert folded.removed_squared == pytest.approx(removed, rel=1e-6, abs=1e-6 * np.linalg.norm(task_vector) ** 2)
        assert folded.dropped_squared <= 1e-12 * np.linalg.norm(before + projected) ** 2
        assert_orthonormal(folded.accumulated, shape)
        spectrum = oracle.spectrum(before) if number else []
        assert folded.split_rank == oracle.split_rank(spectrum, alpha)
        accumulated = folded.accumulated


def assert_orthonormal(basis: Factored, shape: tuple[int, int]) -> None:
    q = len(basis.singular_values)
    assert (basis.left.shape, basis.right.shape) == ((shape[0], q), (q, shape[1]))
    assert q <= min(shape)
    for gram in (basis.left.mT @ basis.left, basis.right @ basis.right.mT):
        torch.testing.assert_close(gram, torch.eye(q), rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_as_the_dense_rule_folds(shape: tuple[int, int], seed: int) -> None:
    generator = Generator().manual_seed(seed)
    rule = make_rule("opcm")
    accumulation = rule.accumulation
    assert accumulation.fold_factored is not None
    assert accumulation.projection is not None
    accumulated = nothing(shape)
    for _ in range(2):
        handed_in = factors(shape, generator)
        before = dense(accumulated).float()
        folded = accumulation.fold_factored(accumulated, handed_in, project=True, max_rank=0)
        task_vector = handed_in.up @ handed_in.down
        if before.any():
            basis = rule.decomposition.decompose(before)
            expected = accumulation.projection.fold(before, task_vector, basis).accumulated
        else:
            expected = accumulation.fold({ACCUMULATED: before}, task_vector, Step(True, 0)).state[ACCUMULATED]
        assert relative(dense(folded.accumulated), expected) <= 1e-5
        accumulated = folded.accumulated


def test_without_a_projection_it_is_a_sum(seed: int) -> None:
    generator = Generator().manual_seed(seed)
    one, other = factors((40, 24), generator), factors((40, 24), generator)
    first = fold(nothing((40, 24)), one, project=False)
    second = fold(first.accumulated, other, project=False)
    assert second.removed_squared == 0
    assert relative(dense(second.accumulated), one.up @ one.down + other.up @ other.down) <= 1e-6
    assert len(second.accumulated.singular_values) == 2 * RANK


def test_a_limit_of_the_rank_keeps_the_best(seed: int) -> None:
    generator = Generator().manual_seed(seed)
    first = fold(nothing((40, 24)), factors((40, 24), generator, 5))
    whole = fold(first.accumulated, other := factors((40, 24), generator, 5))
    limited = fold(first.accumulated, other, max_rank=6)
    values = whole.accumulated.singular_values
    torch.testing.assert_close(limited.accumulated.singular_values, values[:6])
    assert limited.dropped_squared == pytest.approx(float(values[6:].square().sum()), rel=1e-9)
    left, sigma, right = np.linalg.svd(dense(whole.accumulated).numpy())
    assert relative(dense(limited.accumulated), (left[:, :6] * sigma[:6]) @ right[:6]) <= 1e-6


@pytest.mark.parametrize("leading", [False, True])
def test_what_is_merged_already_adds_nothing(leading: bool, seed: int) -> None:
    handed_in = factors((40, 24), Generator().manual_seed(seed))
    fold_factored = opcm(projection="leading" if leading else "exact").fold_factored
    assert fold_factored is not None
    first = fold_factored(nothing((40, 24)), handed_in, project=True, max_rank=0)
    again = fold_factored(first.accumulated, handed_in, project=True, max_rank=0)
    assert relative(dense(again.accumulated), dense(first.accumulated)) <= 1e-6
    assert len(again.accumulated.singular_values) == RANK
    assert again.removed_squared == pytest.approx(again.task_vector_norm**2, rel=1e-9)


def test_nothing_stays_nothing() -> None:
    zero = LowRank(torch.zeros(8, 2), torch.zeros(2, 5))
    folded = fold(nothing((8, 5)), zero)
    assert len(folded.accumulated.singular_values) == 0
    assert folded.task_vector_norm == folded.removed_squared == folded.dropped_squared == 0


def fold(accumulated: Factored, handed_in: LowRank, *, project: bool = True, max_rank: int = 0) -> FoldedFactored:
    fold_factored = opcm().fold_factored
    assert fold_factored is not None
    return fold_factored(accumulated, handed_in, project=project, max_rank=max_rank)


def test_a_sum_of_task_vectors_is_kept_as_factors_too(seed: int) -> None:
    generator = Generator().manual_seed(seed)
    fold_factored = task_vector_sum().fold_factored
    assert fold_factored is not None
    accumulated, total = nothing((40, 24)), torch.zeros(40, 24, dtype=torch.float64)
    for _ in range(3):
        handed_in = factors((40, 24), generator)
        total += handed_in.up.double() @ handed_in.down.double()
        folded = fold_factored(accumulated, handed_in, project=False, max_rank=0)
        assert folded.removed_squared == folded.split_rank == 0
        assert relative(dense(folded.accumulated), total) <= 1e-6
        accumulated = folded.accumulated
