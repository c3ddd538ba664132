import numpy as np
import pytest
import torch
from foldind.merging.basis import RANK_TOLERANCE, Basis, DecompositionError, decompose, split_rank
from foldind.merging.opcm import opcm, project
from torch import Generator, Tensor

from tests.merging import oracle
from tests.merging.matrices import ALL, UNIQUE, Build, random, with_spectrum

OUT_OF_RANGE = (-0.1, -1e-12, 1.0, 1.5, float("nan"), float("inf"), float("-inf"))


def reconstruct(basis: Basis) -> Tensor:
    return (basis.left.double() * basis.singular_values) @ basis.right.double()


def gram_error(columns: Tensor) -> float:
    gram = columns.double().mT @ columns.double()
    return float((gram - torch.eye(len(gram), dtype=torch.float64)).abs().max()) if len(gram) else 0.0


@pytest.mark.parametrize("build", ALL.values(), ids=ALL)
def test_basis_is_a_thin_svd(build: Build, seed: int) -> None:
    matrix = build(Generator().manual_seed(seed))
    basis = decompose(matrix, 0.5)
    rank = len(basis.singular_values)
    assert basis.left.shape == (matrix.shape[0], rank)
    assert basis.right.shape == (rank, matrix.shape[1])
    assert (basis.left.dtype, basis.singular_values.dtype, basis.right.dtype) == (
        torch.float32,
        torch.float64,
        torch.float32,
    )
    error = torch.linalg.vector_norm(reconstruct(basis) - matrix.double())
    assert error <= 1e-6 * torch.linalg.vector_norm(matrix.double())


@pytest.mark.parametrize("name", ALL)
def test_basis_is_orthonormal(name: str, seed: int) -> None:
    basis = decompose(ALL[name](Generator().manual_seed(seed)), 0.5)
    bound = 5e-7
    for columns in (basis.left, basis.right.mT):
        assert torch.allclose(columns.double().norm(dim=0), torch.ones(1, dtype=torch.float64), rtol=0, atol=5e-7)
    assert gram_error(basis.left) <= bound
    assert gram_error(basis.right.mT) <= bound


@pytest.mark.parametrize("build", ALL.values(), ids=ALL)
def test_singular_values_are_those_of_a_full_svd(build: Build, seed: int) -> None:
    matrix = build(Generator().manual_seed(seed))
    expected = oracle.spectrum(matrix.double().numpy())
    np.testing.assert_allclose(decompose(matrix, 0.5).singular_values.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("build", UNIQUE.values(), ids=UNIQUE)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9, 0.999999])
def test_split_rank_of_a_basis_is_the_first_index_above_alpha(build: Build, alpha: float, seed: int) -> None:
    matrix = build(Generator().manual_seed(seed))
    assert decompose(matrix, alpha).split_rank == oracle.split_rank(oracle.spectrum(matrix.double().numpy()), alpha)


@pytest.mark.parametrize(
    ("rank", "build"),
    [
        (1, lambda g: random(30, 1, g) @ random(1, 20, g)),
        (12, lambda g: sum((random(40, 4, g) @ random(4, 28, g) for _ in range(3)), torch.zeros(40, 28))),
        (6, lambda g: with_spectrum(32, 32, torch.ones(6), g) + 5e-8 * with_spectrum(32, 32, torch.ones(32), g)),
        (24, lambda g: with_spectrum(36, 24, torch.logspace(0, -5, 24), g)),
        (2, lambda g: torch.tensor([1.0, 4e-7, 1e-7]).diag()),
        (1, lambda g: torch.ones(7, 9)),
        (0, lambda g: torch.zeros(5, 8)),
    ],
    ids=[
        "rank 1",
        "sum of LoRA updates",
        "noise of 5e-8",
        "decay to 1e-5",
        "one above, one below",
        "constant",
        "zero",
    ],
)  # fmt: skip
def test_numerical_rank(rank: int, build: Build, seed: int) -> None:
    assert len(decompose(build(Generator().manual_seed(seed)), 0.5).singular_values) == rank


def test_rank_tolerance_is_the_designs() -> None:
    assert RANK_TOLERANCE == oracle.ZERO


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (4, 4), (1, 6), (6, 1)])
def test_zero_matrix_has_an_empty_basis_and_projects_nothing(shape: tuple[int, int], seed: int) -> None:
    basis = decompose(torch.zeros(shape), 0.5)
    assert (basis.left.shape, basis.right.shape, basis.split_rank) == ((shape[0], 0), (0, shape[1]), 0)
    task_vector = random(*shape, Generator().manual_seed(seed))
    for cross_blocks in ("keep", "drop"):
        projected, removed_squared = project(task_vector, basis, cross_blocks)
        assert torch.equal(projected, task_vector)
        assert removed_squared == 0


class TestSplitRank:
    @pytest.mark.parametrize(
        ("singular_values", "alpha", "expected"),
        [
            ([4, 3, 2, 1], 0.0, 0),
            ([4, 3, 2, 1], 0.39, 0),
            ([4, 3, 2, 1], 0.41, 1),
            ([4, 3, 2, 1], 0.69, 1),
            ([4, 3, 2, 1], 0.71, 2),
            ([4, 3, 2, 1], 0.91, 3),
            ([4, 3, 2, 1], 1 - 1e-15, 3),
            ([1, 1, 1, 1], 0.5, 2),  # the share must exceed alpha, and two of four only reach it
            ([1, 1, 1, 1], 0.25, 1),
            ([8, 4, 2, 2], 0.5, 1),
            ([1000, 1e-3], 0.5, 0),
            ([5], 0.999999, 0),
            ([5e-324], 0.9, 0),  # nine tenths of the least float64 are all of it
            ([], 0.5, 0),
        ],
    )
    def test_known(self, singular_values: list[float], alpha: float, expected: int) -> None:
        assert split_rank(torch.tensor(singular_values, dtype=torch.float64), alpha) == expected

    def test_is_the_oracles_on_random_spectra(self, seed: int) -> None:
        generator = Generator().manual_seed(seed)
        for _ in range(300):
            count = int(torch.randint(1, 30, (), generator=generator))
            alpha = float(torch.rand((), generator=generator, dtype=torch.float64))
            values = torch.rand(count, generator=generator, dtype=torch.float64).exp().sort(descending=True).values
            assert split_rank(values, alpha) == oracle.split_rank(values.tolist(), alpha)

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1 - 1e-16])
    @pytest.mark.parametrize("count", [1, 2, 7, 100])
    def test_leaves_at_least_one_direction(self, alpha: float, count: int) -> None:
        rank = split_rank(torch.logspace(0, -12, count, dtype=torch.float64), alpha)
        assert 0 <= rank <= count - 1
        assert alpha != 0 or rank == 0

    def test_sums_in_float64(self) -> None:
        # In float32 the sum would stay at 2^24, whose share of itself exceeds every alpha: r = 0.
        values = torch.tensor([2.0**24] + [1.0] * 1000, dtype=torch.float32)
        assert split_rank(values, (2**24 + 500.5) / (2**24 + 1000)) == 501

    @pytest.mark.parametrize("alpha", OUT_OF_RANGE)
    def test_alpha_out_of_range(self, alpha: float) -> None:
        for values in (torch.ones(3), torch.ones(0)):
            with pytest.raises(ValueError, match="alpha"):
                split_rank(values, alpha)
        with pytest.raises(ValueError, match="alpha"):
            decompose(torch.eye(3), alpha)
        with pytest.raises(ValueError, match="alpha"):
            opcm(alpha=alpha)


class TestDrivers:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 3)])
    def test_not_finite_never_reaches_a_decomposition(
        self, value: float, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def reached(*_: object, **__: object) -> None:
            pytest.fail("a matrix that is not finite reached a decomposition")

        for name in ("eigh", "eigvalsh", "svd", "svdvals", "qr"):
            monkeypatch.setattr(torch.linalg, name, reached)
        matrix = torch.ones(shape)
        matrix[-1, -1] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            decompose(matrix, 0.5)

    @pytest.mark.parametrize("name", UNIQUE)
    @pytest.mark.parametrize("failure", ["raises", "returns NaN"])
    def test_svd_where_eigh_fails(self, name: str, failure: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = Generator().manual_seed(seed)
        matrix = UNIQUE[name](generator)
        usual = decompose(matrix, 0.5)
        monkeypatch.setattr(torch.linalg, "eigh", not_converging if failure == "raises" else nan_eigenvalues)
        other = decompose(matrix, 0.5)
        assert other.split_rank == usual.split_rank
        torch.testing.assert_close(other.singular_values, usual.singular_values, rtol=1e-6, atol=0)
        task_vector = random(*matrix.shape, generator)
        error = (project(task_vector, other).accumulated - project(task_vector, usual).accumulated).norm()
        assert error <= 1e-6 * task_vector.norm()

    def test_neither_converges(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.linalg, "eigh", not_converging)
        monkeypatch.setattr(torch.linalg, "svd", not_converging)
        with pytest.raises(DecompositionError, match="small side is 3"):
            decompose(torch.ones(3, 4), 0.5)

    def test_svd_that_returns_nan_has_not_converged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.linalg, "eigh", not_converging)
        monkeypatch.setattr(torch.linalg, "svd", nan_svd)
        with pytest.raises(DecompositionError):
            decompose(torch.eye(3), 0.5)


def not_converging(*_: object, **__: object) -> None:
    raise torch.linalg.LinAlgError("the algorithm failed to converge")


def nan_eigenvalues(matrix: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full(matrix.shape[:1], float("nan"), dtype=matrix.dtype), torch.full_like(matrix, float("nan"))


def nan_svd(matrix: Tensor, full_matrices: bool) -> tuple[Tensor, Tensor, Tensor]:
    count = min(matrix.shape)
    return tuple(  # type: ignore[return-value]
        torch.full(shape, float("nan"), dtype=matrix.dtype)
        for shape in ((matrix.shape[0], count), (count,), (count, matrix.shape[1]))
    )
