"""Every rule, folded one task vector at a time in float32, against its batch definition in float64."""

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations

import numpy as np
import pytest
import torch
from foldind.merging.catalog import ACCUMULATED, CATALOG
from foldind.merging.registry import make_rule
from torch import Generator, Tensor

from tests.merging import oracle_rules as oracle
from tests.merging.oracle import merge_accumulated, project
from tests.merging.oracle_rules import Array
from tests.merging.rules import COMBINATIONS, IRREVERSIBLE, ORDERED, Combination
from tests.merging.streaming import TABLE, Merge

MEDIAN, WORST = 1e-6, 2e-5
SAME = 1e-5
SHAPES: Mapping[str, tuple[int, ...]] = {
    "tall": (40, 24),
    "wide": (24, 40),
    "nearly square": (34, 28),
    "convolution": (6, 3, 4, 4),
    "words": (30, 12),
    "bias": (30,),
    "scale": (),
}
MATRICES = ("tall", "wide", "nearly square")

TaskVectors = list[dict[str, Tensor]]
Exact = Sequence[Array]


def task_vectors(generator: Generator, count: int, common: float = 0.7) -> TaskVectors:
    """Of different lengths, and alike to a degree, as those of real checkpoints are."""
    shared = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found = [
        {
            name: 0.01 * (1 + number) * (common * shared[name] + torch.randn(shape, generator=generator))
            for name, shape in SHAPES.items()
        }
        for number in range(count)
    ]
    # Where a single number cancels, no relative error of it is small.
    return [one | {"scale": one["scale"].abs()} for one in found]


def exact(handed_in: TaskVectors, name: str) -> list[Array]:
    return [one[name].double().numpy() for one in handed_in]


def total(values: Exact) -> Array:
    return sum(values[1:], values[0])


def relative(found: Tensor, expected: Array) -> float:
    return float(np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected))


def merged(combination: Combination, handed_in: TaskVectors, **options: float | str) -> dict[str, Tensor]:
    merge = Merge(combination.make(**options))
    for number, one in enumerate(handed_in):
        merge.fold(one, number)
    return merge.update


Batch = Callable[[Exact, bool], Array]
"""All task vectors of a tensor, and whether it is a matrix -> the merged one."""

RULES: Mapping[str, Batch] = {
    "average": lambda values, matrix: oracle.average(values),
    "task_arithmetic": lambda values, matrix: oracle.task_arithmetic(values, 0.3),
    "ties": lambda values, matrix: oracle.ties(values, 0.2),
    "breadcrumbs": lambda values, matrix: oracle.breadcrumbs(values, 0.9, 0.01, 0.3),
    "magmax": lambda values, matrix: oracle.magmax(values, 0.5),
    "iso": lambda values, matrix: oracle.iso_c(total(values), 1.0) if matrix else oracle.average(values),
    "regression": lambda values, matrix: oracle.regression(values, 0.3) if matrix else oracle.average(values),
    "model_stock": lambda values, matrix: oracle.model_stock(values),
}
"""Of every rule but OPCM, whose definition is no batch, and DARE, which draws."""

OPTIONS: Sequence[tuple[str, str, Mapping[str, float], Batch]] = (
    ("ties", "ties:0.4", {"density": 0.5}, lambda values, matrix: oracle.ties(values, 0.5, 0.4)),
    ("ties", "", {"density": 1.0}, lambda values, matrix: oracle.ties(values, 1.0)),
    ("ties", "", {"density": 0.001}, lambda values, matrix: oracle.ties(values, 0.001)),
    (
        "breadcrumbs",
        "mean",
        {"density": 0.5, "outliers": 0.1},
        lambda values, matrix: oracle.breadcrumbs(values, 0.5, 0.1, 1 / len(values)),
    ),
    (
        "breadcrumbs",
        "scale:1",
        {"density": 0.95, "outliers": 0.3},
        lambda values, matrix: oracle.breadcrumbs(values, 0.95, 0.3, 1.0),
    ),
    (
        "regression",
        "regression:0.01",
        {},
        lambda values, matrix: oracle.regression(values, 0.01) if matrix else oracle.average(values),
    ),
)


def norms(handed_in: TaskVectors) -> list[float]:
    return [float(np.sqrt(sum((exact([one], name)[0] ** 2).sum() for name in one))) for one in handed_in]


def of_the_sum(publication: str, handed_in: TaskVectors) -> dict[str, Array]:
    """A publication of the sum of task vectors."""
    sums = {name: total(exact(handed_in, name)) for name in SHAPES}
    count = len(handed_in)
    name, *given = publication.split(":")
    numbers = [float(number) for number in given]
    if name == "norm":
        length = float(np.sqrt(sum((values**2).sum() for values in sums.values())))
        lambda_ = length / (sum(norms(handed_in)) / count)
        return {key: values / lambda_ for key, values in sums.items()}
    if name in {"mean", "scale"}:
        factor = 1 / count if name == "mean" else numbers[0]
        return {key: factor * values for key, values in sums.items()}
    lengths = {key: oracle.root_mean_square(exact(handed_in, key)) for key in SHAPES}
    if name == "tensor_norm":
        return {key: oracle.scaled_to(values, numbers[0] * lengths[key]) for key, values in sums.items()}

    def matrix(key: str) -> Array:
        if name == "iso":
            return oracle.iso_c(sums[key], numbers[0])
        if name == "flat":
            return oracle.power(sums[key], 0.0, numbers[0] * lengths[key])
        exponent = 1 / count if name == "foldin" else numbers[0]
        return oracle.power(sums[key], exponent, float(np.linalg.norm(sums[key])))

    return {
        key: matrix(key) if key in MATRICES else values if name == "foldin" and key == TABLE else values / count
        for key, values in sums.items()
    }


PUBLISHED = ("norm", "mean", "scale:0.7", "tensor_norm:1.5", "iso:0.8", "flat:2.0", "power:0.5", "power:0.2", "foldin")


class TestBatch:
    @pytest.mark.parametrize("count", [1, 2, 5])
    @pytest.mark.parametrize("name", RULES)
    def test_is_the_batch_definition(self, name: str, count: int, generator: Generator) -> None:
        self.check(Combination(name, ""), {}, RULES[name], count, generator)

    @pytest.mark.parametrize(("name", "publication", "options", "batch"), OPTIONS)
    def test_options(
        self, name: str, publication: str, options: Mapping[str, float], batch: Batch, generator: Generator
    ) -> None:
        self.check(Combination(name, publication), options, batch, 4, generator)

    def check(
        self,
        combination: Combination,
        options: Mapping[str, float],
        batch: Batch,
        count: int,
        generator: Generator,
    ) -> None:
        handed_in = task_vectors(generator, count)
        update = merged(combination, handed_in, **options)
        errors = []
        for name in SHAPES:
            values = exact(handed_in, name)
            found, expected = update[name], batch(values, name in MATRICES)
            if combination.rule == "ties":
                settled = ~oracle.contested(values, options.get("density", 0.2))
                found, expected = found.where(torch.from_numpy(np.asarray(settled)), 0.0), expected * settled
            if np.any(expected):
                errors.append(relative(found, expected))
            else:
                assert not found.any()
        print(f"MEASURED batch {combination} {count}: median {np.median(errors):.1e}, worst {max(errors):.1e}")
        assert np.median(errors) <= MEDIAN
        assert max(errors) <= WORST

    @pytest.mark.parametrize("rule", ["average", "task_arithmetic", "iso"])
    @pytest.mark.parametrize("publication", PUBLISHED)
    def test_publications_of_a_sum(self, rule: str, publication: str, generator: Generator) -> None:
        handed_in = task_vectors(generator, 5)
        update, expected = merged(Combination(rule, publication), handed_in), of_the_sum(publication, handed_in)
        errors = [relative(update[name], expected[name]) for name in SHAPES]
        print(f"MEASURED publication {rule}+{publication}: median {np.median(errors):.1e}, worst {max(errors):.1e}")
        assert np.median(errors) <= MEDIAN
        assert max(errors) <= WORST

    @pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
    def test_dare_is_its_definition_with_what_it_drew(self, density: float, generator: Generator) -> None:
        handed_in = task_vectors(generator, 5)
        rule = make_rule("dare", {"density": density}, "scale:0.3")
        alone = [Merge(rule).fold(one, number).states for number, one in enumerate(handed_in)]
        update = merged(Combination("dare", "scale:0.3"), handed_in, density=density)
        for name in SHAPES:
            masks = [(states[name][ACCUMULATED] != 0).numpy() for states in alone]
            values = exact(handed_in, name)
            for mask, value, states in zip(masks, values, alone, strict=True):
                np.testing.assert_allclose(
                    states[name][ACCUMULATED].double().numpy(), mask * value / density, rtol=2e-7, atol=0
                )
            expected = oracle.dare(values, masks, density, 0.3)
            assert np.linalg.norm(update[name].double().numpy() - expected) <= MEDIAN * max(
                float(np.linalg.norm(total(values))), 1e-9
            )

    @pytest.mark.parametrize("density", [0.9, 0.5, 0.1])
    def test_dare_drops_the_right_share_and_keeps_the_sum(self, density: float) -> None:
        values, count = torch.ones(200, 200), 20
        merge = Merge(make_rule("dare", {"density": density}, "mean"))
        shares = []
        for seed in range(count):
            alone = Merge(merge.rule).fold({"w": values}, seed).states["w"][ACCUMULATED]
            shares.append(float((alone != 0).double().mean()))
            merge.fold({"w": values}, seed)
        deviation = (density * (1 - density) / values.numel()) ** 0.5
        assert all(abs(share - density) <= 5 * deviation for share in shares)
        assert len(set(shares)) > count / 2, "every submission draws anew"
        mean = float(merge.update["w"].double().mean())
        assert abs(mean - 1) <= 5 * deviation / density / count**0.5

    def test_opcm_is_that_of_the_paper(self, generator: Generator) -> None:
        """For the sake of the list; more of it is in test_sequence.py."""
        handed_in = task_vectors(generator, 3)
        base = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        submissions = [{name: exact([one], name)[0] for name in SHAPES} for one in handed_in]
        expected = merge_accumulated(base, submissions, MATRICES)[-1].merged
        update = merged(Combination("opcm", "norm"), handed_in)
        errors = [relative(update[name], expected[name]) for name in SHAPES]
        assert np.median(errors) <= MEDIAN

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_foldin_is_its_definition(self, count: int, generator: Generator) -> None:
        handed_in = task_vectors(generator, count)
        sums = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        for one in handed_in:
            for name, accumulated in sums.items():
                update = exact([one], name)[0]
                if name in MATRICES and accumulated.any():
                    update = project(update, accumulated, 0.5, "keep")
                if name == TABLE:
                    rows = zip(update, accumulated, strict=True)
                    update = np.stack([row - (row @ s) / max(s @ s, 1e-300) * s for row, s in rows])
                sums[name] = accumulated + update
        update = merged(Combination("foldin", ""), handed_in)
        errors = []
        for name, values in sums.items():
            expected = values if name == TABLE else values / count
            if name in MATRICES:
                expected = oracle.power(values, 1 / count, float(np.linalg.norm(values)))
            errors.append(relative(update[name], expected))
        print(f"MEASURED foldin {count}: median {np.median(errors):.1e}, worst {max(errors):.1e}")
        assert np.median(errors) <= MEDIAN
        assert max(errors) <= WORST
        if count == 1:
            assert all(relative(update[name], exact(handed_in, name)[0]) <= MEDIAN for name in SHAPES)


class TestOrder:
    @pytest.mark.parametrize("rule", CATALOG)
    def test_of_the_submissions(self, rule: str, generator: Generator) -> None:
        handed_in = task_vectors(generator, 4, common=0.3)
        combinations = [one for one in COMBINATIONS if one.rule == rule]
        settled = {name: np.ones(shape, dtype=bool) for name, shape in SHAPES.items()}
        if rule == "ties":
            settled = {name: ~oracle.contested(exact(handed_in, name), 0.2) for name in SHAPES}
        reference: dict[Combination, dict[str, Array]] = {}
        worst = dict.fromkeys(combinations, 0.0)
        for order in permutations(range(4)):
            merge = Merge(make_rule(rule))
            for number in order:
                merge.fold(handed_in[number], number)
            for combination in combinations:
                merge.rule = combination.make()
                update = {name: values.double().numpy() * settled[name] for name, values in merge.update.items()}
                before = reference.setdefault(combination, update)
                for name, values in update.items():
                    difference = np.linalg.norm(values - before[name]) / max(np.linalg.norm(before[name]), 1e-30)
                    worst[combination] = max(worst[combination], float(difference))
        for combination, difference in worst.items():
            print(f"MEASURED permutation {combination}: worst {difference:.1e}")
            if rule in ORDERED:
                assert difference > 1e-2
            else:
                assert difference <= (0 if rule == "magmax" else SAME), combination

    @pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
    def test_taking_out_is_never_having_folded(self, combination: Combination, generator: Generator) -> None:
        if combination.rule in IRREVERSIBLE:
            assert combination.make().accumulation.take_out is None
            return
        first, second, third = task_vectors(generator, 3)
        merge = Merge(combination.make())
        for number, one in enumerate((first, second, third)):
            merge.fold(one, number)
        merge.take_out(second, 1)
        without = Merge(combination.make()).fold(first, 0).fold(third, 2)
        errors = {}
        for name, values in without.update.items():
            settled = torch.ones(values.shape, dtype=torch.bool)
            if combination.rule == "ties":
                settled = ~torch.from_numpy(np.asarray(oracle.contested(exact([first, third], name), 0.2)))
            difference = (merge.update[name].double() - values.double()) * settled
            errors[name] = float(difference.norm() / values.double().norm().clamp(min=1e-30))
        print(f"MEASURED taking out {combination}: worst {max(errors.values()):.1e}")
        assert max(errors.values()) <= SAME, errors


def test_of_two_of_one_magnitude_magmax_takes_the_positive_one() -> None:
    one, other = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([-1.0, 2.0, 0.0])
    for order in permutations((one, other, one, -other)):
        merge = Merge(make_rule("magmax", publication="scale:1"))
        for values in order:
            merge.fold({"b": values})
        assert torch.equal(merge.update["b"], torch.tensor([1.0, 2.0, 0.0]))


def test_ties_keeps_nothing_of_a_side_that_lost() -> None:
    merge = Merge(make_rule("ties", {"density": 1.0}))
    for values in ([1.0, -1.0, 3.0], [2.0, -4.0, -1.0], [-1.0, 0.0, -1.0]):
        merge.fold({"b": torch.tensor(values)})
    torch.testing.assert_close(merge.update["b"], torch.tensor([1.5, -2.5, 3.0]))


def test_model_stock_of_what_points_apart_publishes_nothing(generator: Generator) -> None:
    values = torch.randn(12, 8, generator=generator)
    for others in ((-values,), (-values, 0.1 * values, -values)):
        merge = Merge(make_rule("model_stock")).fold({"w": values})
        for other in others:
            merge.fold({"w": other})
        assert float(merge.update["w"].norm()) <= 1e-6


def test_model_stock_leaves_out_what_changes_nothing(generator: Generator) -> None:
    handed_in = [{"w": values["tall"]} for values in task_vectors(generator, 3)]
    with_nothing, without = (Merge(make_rule("model_stock")) for _ in range(2))
    for one in handed_in:
        with_nothing.fold(one).fold({"w": torch.zeros(40, 24)})
        without.fold(one)
    assert torch.equal(with_nothing.update["w"], without.update["w"])


def test_regression_of_low_rank_task_vectors(generator: Generator) -> None:
    """Where no task vector says anything, it is the mean."""
    handed_in = [
        {"w": torch.randn(40, 2, generator=generator) @ torch.randn(2, 24, generator=generator)} for _ in range(3)
    ]
    merge = Merge(make_rule("regression"))
    for one in handed_in:
        merge.fold(one)
    assert relative(merge.update["w"], oracle.regression(exact(handed_in, "w"), 0.3)) <= 1e-6


@pytest.mark.parametrize("eps", ["1e-9", "1e-30"])
def test_regression_with_next_to_no_mean_does_not_fail(eps: str, generator: Generator) -> None:
    """Where the Gram matrix is singular but for rounding, it gets as much of the mean as it needs."""
    merge = Merge(make_rule("regression", publication=f"regression:{eps}"))
    for _ in range(3):
        merge.fold({"w": torch.randn(64, 2, generator=generator) @ torch.randn(2, 48, generator=generator)})
    assert torch.isfinite(merge.update["w"]).all()
    assert float(merge.update["w"].norm()) <= 10 * float(merge.states["w"]["accumulated"].norm())
