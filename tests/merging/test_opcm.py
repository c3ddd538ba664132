"""One fold, from the same stored float32 state, against the oracle, and what must hold whatever the numbers."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from foldind.merging.backend import BACKENDS, Backend
from foldind.merging.basis import decompose
from foldind.merging.opcm import opcm, project, project_leading
from foldind.merging.registry import make_rule
from foldind.merging.rule import Accumulation, Projection, Step
from torch import Generator, Tensor

from tests.merging import oracle
from tests.merging.matrices import ALL, ALPHAS, CROSS_BLOCKS, UNIQUE, Build, random, task_vectors

EXACT = 1e-6


def errors(name: str, seed: int, leading: bool, backend: Backend) -> Iterator[float]:
    """||P - P*|| / ||tau|| and ||S_t - S_t*|| / ||S_t*|| for every angle, alpha and form.

    The rest of S is a difference of float32 matrices: what that loses is counted in units of ||S|| / ||rest||.
    """
    oracle_project = oracle.project_leading if leading else oracle.project
    generator = Generator().manual_seed(seed)
    accumulated = UNIQUE[name](generator)
    exact = accumulated.double().numpy()
    for task_vector in task_vectors(accumulated, generator).values():
        length = float(task_vector.double().norm()) or 1.0
        for alpha in ALPHAS:
            basis = decompose(accumulated, alpha, leading=leading, backend=backend)
            values = np.array(oracle.spectrum(exact))
            rest = values[oracle.split_rank(values.tolist(), alpha) :]
            unit = np.linalg.norm(values) / np.linalg.norm(rest) if leading else 1.0
            for cross_blocks in CROSS_BLOCKS:
                expected = oracle_project(task_vector.double().numpy(), exact, alpha, cross_blocks)
                if leading:
                    projected, _ = project_leading(task_vector, accumulated, basis, cross_blocks, backend.matmul)
                else:
                    projected, _ = project(task_vector, basis, cross_blocks, backend.matmul)
                assert projected.dtype == torch.float32
                yield np.linalg.norm(projected.double().numpy() - expected) / length / unit
                projection = projection_of(opcm(alpha, cross_blocks, "leading" if leading else "exact", backend))
                folded, _ = projection.fold(accumulated, task_vector, basis)
                total = exact + expected
                yield np.linalg.norm(folded.double().numpy() - total) / np.linalg.norm(total) / unit


class TestAgainstOracle:
    def test_oracles_agree_with_each_other(self, seed: int) -> None:
        generator = Generator().manual_seed(seed)
        accumulated, task_vector = (random(9, 6, generator).double().numpy() for _ in range(2))
        left, values, right_transposed = np.linalg.svd(accumulated, full_matrices=False)
        for alpha in ALPHAS:
            for cross_blocks in CROSS_BLOCKS:
                np.testing.assert_allclose(
                    oracle.project(task_vector, accumulated, alpha, cross_blocks),
                    oracle.project_in_basis(
                        task_vector, left, right_transposed.T, oracle.split_rank(values, alpha), cross_blocks
                    ),
                    atol=1e-13,
                )

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("leading", [False, True], ids=["exact", "leading"])
    @pytest.mark.parametrize("name", UNIQUE)
    def test_fold_is_exact(self, name: str, leading: bool, backend: str, seed: int) -> None:
        found = list(errors(name, seed, leading, BACKENDS[backend]))
        assert max(found) <= EXACT
        assert np.median(found) <= 5e-7

    @pytest.mark.parametrize("build", ALL.values(), ids=ALL)
    def test_fold_is_exact_in_its_own_basis(self, build: Build, seed: int) -> None:
        generator = Generator().manual_seed(seed)
        accumulated = build(generator)
        for task_vector in task_vectors(accumulated, generator).values():
            length = float(task_vector.double().norm()) or 1.0
            for alpha in ALPHAS:
                basis = decompose(accumulated, alpha)
                left, right = basis.left.double().numpy(), basis.right.double().numpy().T
                for cross_blocks in CROSS_BLOCKS:
                    projected = project(task_vector, basis, cross_blocks).accumulated
                    expected = oracle.project_in_basis(
                        task_vector.double().numpy(), left, right, basis.split_rank, cross_blocks
                    )
                    assert np.linalg.norm(projected.double().numpy() - expected) <= 1e-6 * length


@pytest.mark.parametrize("build", ALL.values(), ids=ALL)
class TestInvariants:
    def test_update_is_orthogonal_to_what_is_merged(self, build: Build, seed: int) -> None:
        for accumulated, task_vector, projected, _ in self.cases(build, seed):
            inner = float((projected.double() * accumulated.double()).sum().abs())
            lengths = norm(projected), norm(task_vector), norm(accumulated)
            assert inner <= 1e-6 * lengths[1] * lengths[2]
            if lengths[0] > 0.1 * lengths[1]:
                assert inner <= 1e-5 * lengths[0] * lengths[2]

    def test_removed_squared_is_what_was_removed(self, build: Build, seed: int) -> None:
        for _, task_vector, projected, removed_squared in self.cases(build, seed):
            whole = norm(task_vector) ** 2
            assert abs(norm(projected) ** 2 - (whole - removed_squared)) <= 1e-5 * whole
            assert -1e-6 * whole <= removed_squared <= (1 + 1e-6) * whole

    def test_closed_form_of_the_norm_is_the_measured_one(self, build: Build, seed: int) -> None:
        generator = Generator().manual_seed(seed)
        accumulated = build(generator)
        task_vector = task_vectors(accumulated, generator)["random"]
        for alpha in ALPHAS:
            for cross_blocks in CROSS_BLOCKS:
                rule = make_rule("opcm", {"alpha": alpha, "cross_blocks": cross_blocks})
                basis = rule.decomposition.decompose(accumulated)
                folded, removed_squared = projection_of(rule.accumulation).fold(accumulated, task_vector, basis)
                closed = norm(accumulated) ** 2 + norm(task_vector) ** 2 - removed_squared
                assert closed**0.5 == pytest.approx(norm(folded), rel=1e-6)

    def test_projecting_twice_is_projecting_once(self, build: Build, seed: int) -> None:
        generator = Generator().manual_seed(seed)
        accumulated = build(generator)
        task_vector = task_vectors(accumulated, generator)["random"]
        for alpha in ALPHAS:
            basis = decompose(accumulated, alpha)
            for cross_blocks in CROSS_BLOCKS:
                once = project(task_vector, basis, cross_blocks).accumulated
                twice, removed_squared = project(once, basis, cross_blocks)
                assert norm(twice - once) <= 1e-6 * norm(task_vector)
                assert removed_squared <= 1e-8 * norm(task_vector) ** 2

    def test_what_is_merged_already_adds_nothing(self, build: Build, seed: int) -> None:
        accumulated = build(Generator().manual_seed(seed))
        for alpha in ALPHAS:
            basis = decompose(accumulated, alpha)
            for cross_blocks in CROSS_BLOCKS:
                for task_vector in (accumulated, -accumulated):
                    projected, removed_squared = project(task_vector, basis, cross_blocks)
                    assert norm(projected) <= 2e-6 * norm(accumulated)
                    assert removed_squared == pytest.approx(norm(accumulated) ** 2, rel=1e-6)

    def test_zero_task_vector_changes_nothing(self, build: Build, seed: int) -> None:
        accumulated = build(Generator().manual_seed(seed))
        for cross_blocks in CROSS_BLOCKS:
            fold = projection_of(opcm(cross_blocks=cross_blocks)).fold
            folded, removed_squared = fold(accumulated, torch.zeros_like(accumulated), decompose(accumulated, 0.5))
            assert torch.equal(folded, accumulated)
            assert removed_squared == 0

    @pytest.mark.parametrize("factor", [2.0**-30, 0.25, 2.0**20])
    def test_scale_of_what_is_merged_does_not_matter(self, build: Build, factor: float, seed: int) -> None:
        generator = Generator().manual_seed(seed)
        accumulated = build(generator)
        task_vector = task_vectors(accumulated, generator)["random"]
        for alpha in ALPHAS:
            one, other = decompose(accumulated, alpha), decompose(accumulated * factor, alpha)
            assert one.split_rank == other.split_rank
            for cross_blocks in CROSS_BLOCKS:
                difference = (
                    project(task_vector, one, cross_blocks).accumulated
                    - project(task_vector, other, cross_blocks).accumulated
                )
                assert norm(difference) <= 1e-6 * norm(task_vector)

    @staticmethod
    def cases(build: Build, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
        generator = Generator().manual_seed(seed)
        accumulated = build(generator)
        for task_vector in task_vectors(accumulated, generator).values():
            for alpha in ALPHAS:
                basis = decompose(accumulated, alpha)
                for cross_blocks in CROSS_BLOCKS:
                    yield accumulated, task_vector, *project(task_vector, basis, cross_blocks)
                    if alpha <= 0.9:  # beyond, next to nothing of S is left, and float32 does not tell what
                        yield accumulated, task_vector, *project_leading(task_vector, accumulated, basis, cross_blocks)


@pytest.mark.parametrize("name", UNIQUE)
def test_transposing_everything_transposes_the_update(name: str, seed: int) -> None:
    generator = Generator().manual_seed(seed)
    accumulated = UNIQUE[name](generator)
    task_vector = task_vectors(accumulated, generator)["random"]
    for alpha in ALPHAS:
        upright = decompose(accumulated, alpha)
        lying = decompose(accumulated.mT.contiguous(), alpha)
        assert upright.split_rank == lying.split_rank
        for cross_blocks in CROSS_BLOCKS:
            difference = (
                project(task_vector, upright, cross_blocks).accumulated
                - project(task_vector.mT.contiguous(), lying, cross_blocks).accumulated.mT
            )
            assert norm(difference) <= EXACT * norm(task_vector)


def test_alpha_0_removes_the_diagonal_alone(seed: int) -> None:
    generator = Generator().manual_seed(seed)
    accumulated, task_vector = random(12, 9, generator), random(12, 9, generator)
    basis = decompose(accumulated, 0.0)
    rotated = basis.left.mT @ project(task_vector, basis).accumulated @ basis.right.mT
    expected = basis.left.mT @ task_vector @ basis.right.mT
    torch.testing.assert_close(rotated, expected - expected.diag().diag(), rtol=0, atol=1e-5)


def test_cross_blocks_are_kept_or_dropped(seed: int) -> None:
    generator = Generator().manual_seed(seed)
    accumulated, task_vector = random(12, 9, generator), random(12, 9, generator)
    basis = decompose(accumulated, 0.5)
    r = basis.split_rank
    assert 0 < r < 9
    before = basis.left.mT @ task_vector @ basis.right.mT
    kept, dropped = (
        basis.left.mT @ project(task_vector, basis, cross_blocks).accumulated @ basis.right.mT
        for cross_blocks in CROSS_BLOCKS
    )
    for rotated in (kept, dropped):
        assert rotated[:r, :r].abs().max() <= 1e-5
        assert rotated.diagonal().abs().max() <= 1e-5
    for block in ((slice(None, r), slice(r, None)), (slice(r, None), slice(None, r))):
        torch.testing.assert_close(kept[block], before[block], rtol=0, atol=1e-5)
        assert dropped[block].abs().max() <= 1e-5
        assert before[block].abs().max() > 1e-2


def test_keep_is_the_default(seed: int) -> None:
    generator = Generator().manual_seed(seed)
    accumulated, task_vector = random(12, 9, generator), random(12, 9, generator)
    basis = decompose(accumulated, 0.5)
    folded = {
        cross_blocks: projection_of(opcm(cross_blocks=cross_blocks)).fold(accumulated, task_vector, basis).accumulated
        for cross_blocks in CROSS_BLOCKS
    }
    rule = make_rule("opcm")
    made = rule.decomposition.decompose(accumulated)
    default = projection_of(rule.accumulation).fold(accumulated, task_vector, made).accumulated
    assert torch.equal(default, folded["keep"])
    assert not torch.allclose(default, folded["drop"], atol=1e-3)
    assert made.split_rank == basis.split_rank


def test_rule_passes_alpha_on(seed: int) -> None:
    accumulated = random(20, 20, Generator().manual_seed(seed))
    decompositions = [make_rule("opcm", {"alpha": alpha}).decomposition for alpha in (0.0, 0.3, 0.6, 0.95)]
    ranks = [decomposition.decompose(accumulated).split_rank for decomposition in decompositions]
    assert ranks == sorted(set(ranks))


@pytest.mark.parametrize("cross_blocks", ["", "Keep", "both", None])
def test_unknown_cross_blocks(cross_blocks: str) -> None:
    with pytest.raises(ValueError, match="cross_blocks"):
        opcm(cross_blocks=cross_blocks)  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [-0.1, 1.0, 2.0, float("nan")])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        opcm(alpha)


def test_what_is_not_projected_is_summed(seed: int) -> None:
    generator = Generator().manual_seed(seed)
    accumulated, task_vector = random(12, 9, generator), random(12, 9, generator)
    folded = opcm().fold({"accumulated": accumulated}, task_vector, Step(matrix=True, seed=0))
    assert torch.equal(folded.state["accumulated"], accumulated + task_vector)
    assert folded.removed_squared == 0


def test_nothing_can_be_taken_out() -> None:
    assert opcm().take_out is None


def projection_of(accumulation: Accumulation) -> Projection:
    assert accumulation.projection is not None
    return accumulation.projection


def norm(values: Tensor) -> float:
    return float(values.double().norm())
