"""The rules that weigh submissions by what these say of themselves: Fisher averaging and RegMean."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
import torch
from foldind.merging.record import Record, TensorRecord
from foldind.merging.registry import make_rule, nothing_merged
from foldind.merging.regmean import is_gram
from foldind.merging.rule import Rule, State, Step
from torch import Generator, Tensor

Pair = tuple[Tensor, Tensor | None]
"""A task vector, and the statistics of it."""

RECORD = TensorRecord(0, 0.0, 0.0)


@pytest.fixture
def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def fold(rule: Rule, pairs: Sequence[Pair], *, matrix: bool = True) -> State:
    state = nothing_merged(rule.name, pairs[0][0].shape, matrix=matrix)
    for task_vector, statistics in pairs:
        state = rule.accumulation.fold(state, task_vector, Step(matrix, 0, statistics)).state
    return state


def published(rule: Rule, state: State, count: int) -> Tensor:
    return rule.publication.update(state, RECORD, Record(count, 0.0, 0.0))


def merge(rule: Rule, pairs: Sequence[Pair], *, matrix: bool = True) -> Tensor:
    return published(rule, fold(rule, pairs, matrix=matrix), len(pairs))


def close(found: Tensor, expected: "np.ndarray | Tensor", tolerance: float = 1e-5) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    assert float((found.double() - wanted).norm()) <= tolerance * float(wanted.norm()), "too far apart"


def fishers(generator: Generator, count: int, shape: tuple[int, ...] = (12, 8)) -> list[Pair]:
    return [
        (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator).square())
        for _ in range(count)
    ]


def gram_of(generator: Generator, n: int, rows: int) -> Tensor:
    """Of inputs that share a direction, as those of real layers do."""
    inputs = torch.randn(rows, n, generator=generator) + 2 * torch.randn(n, generator=generator)
    return inputs.mT @ inputs


def grams(generator: Generator, count: int, m: int = 12, n: int = 8, rows: int = 50) -> list[Pair]:
    return [(torch.randn(m, n, generator=generator), gram_of(generator, n, rows)) for _ in range(count)]


def float64(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.double().numpy()


def fisher_oracle(pairs: Sequence[Pair], floor: float = 1e-6) -> np.ndarray:
    weights = [np.maximum(float64(fisher), floor) for _, fisher in pairs]
    terms = [weight * float64(tau) for weight, (tau, _) in zip(weights, pairs, strict=True)]
    return sum(terms) / sum(weights)


def regmean_oracle(pairs: Sequence[Pair], shrink: float = 0.9) -> np.ndarray:
    shrunk = [shrink * float64(gram) + (1 - shrink) * np.diag(np.diag(float64(gram))) for _, gram in pairs]
    moment = sum(float64(tau) @ gram for (tau, _), gram in zip(pairs, shrunk, strict=True))
    return np.linalg.solve(sum(shrunk), moment.T).T


class TestFisher:
    def test_is_the_weighted_mean(self, generator: Generator) -> None:
        pairs = fishers(generator, 5)
        close(merge(make_rule("fisher"), pairs), fisher_oracle(pairs), 1e-6)

    def test_all_zero_is_the_mean(self, generator: Generator) -> None:
        pairs = [(tau, torch.zeros_like(tau)) for tau, _ in fishers(generator, 4)]
        close(merge(make_rule("fisher"), pairs), sum(float64(tau) for tau, _ in pairs) / 4, 1e-6)

    def test_without_a_floor_what_nobody_weighs_is_unchanged(self, generator: Generator) -> None:
        pairs = fishers(generator, 3)
        for _, fisher in pairs:
            assert fisher is not None
            fisher[0] = 0
        found = merge(make_rule("fisher", {"floor": 0.0}), pairs)
        assert not found[0].any()
        close(found[1:], fisher_oracle(pairs, 1e-300)[1:], 1e-6)

    def test_one_alone_comes_back(self, generator: Generator) -> None:
        pairs = fishers(generator, 1)
        close(merge(make_rule("fisher"), pairs), pairs[0][0], 1e-6)

    @pytest.mark.parametrize("shape", [(), (7,), (6, 3, 4, 4)])
    def test_any_shape(self, shape: tuple[int, ...], generator: Generator) -> None:
        pairs = fishers(generator, 3, shape)
        close(merge(make_rule("fisher"), pairs, matrix=False), fisher_oracle(pairs), 1e-6)

    def test_small_fishers_beside_a_lower_floor(self, generator: Generator) -> None:
        pairs = [(tau, fisher * 1e-12) for tau, fisher in fishers(generator, 3) if fisher is not None]
        close(merge(make_rule("fisher", {"floor": 1e-20}), pairs), fisher_oracle(pairs, 1e-20), 1e-5)

    @pytest.mark.parametrize("floor", [-1.0, float("inf"), float("nan")])
    def test_floor_out_of_range(self, floor: float) -> None:
        with pytest.raises(ValueError, match="floor is at least 0"):
            make_rule("fisher", {"floor": floor})


class TestRegMean:
    @pytest.mark.parametrize("shrink", [0.0, 0.9, 1.0])
    @pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
    def test_is_the_closed_form(self, shrink: float, shape: tuple[int, int], generator: Generator) -> None:
        pairs = grams(generator, 5, *shape)
        close(merge(make_rule("regmean", {"shrink": shrink}), pairs), regmean_oracle(pairs, shrink), 1e-6)

    def test_is_least_squares(self, generator: Generator) -> None:
        inputs = [torch.randn(30, 6, generator=generator).double() for _ in range(3)]
        taus = [torch.randn(4, 6, generator=generator) for _ in range(3)]
        outputs = torch.cat([x @ tau.double().mT for x, tau in zip(inputs, taus, strict=True)])
        best = torch.linalg.lstsq(torch.cat(inputs), outputs).solution.mT
        pairs = [(tau, (x.mT @ x).float()) for x, tau in zip(inputs, taus, strict=True)]
        close(merge(make_rule("regmean", {"shrink": 1.0}), pairs), best)

    @pytest.mark.parametrize("rows", [3, 50])
    def test_one_alone_comes_back(self, rows: int, generator: Generator) -> None:
        pairs = grams(generator, 1, rows=rows)
        close(merge(make_rule("regmean"), pairs), pairs[0][0])
        # Without shrinking, three inputs of eight elements leave most of it to the mean and to rounding.
        close(merge(make_rule("regmean", {"shrink": 1.0}), pairs), pairs[0][0], 5e-3 if rows < 8 else 1e-5)

    def test_inputs_that_nobody_saw_get_the_mean(self, generator: Generator) -> None:
        pairs = grams(generator, 3)
        for _, gram in pairs:
            assert gram is not None
            gram[2] = gram[:, 2] = 0
        found = merge(make_rule("regmean"), pairs)
        close(found[:, 2], sum(float64(tau) for tau, _ in pairs)[:, 2] / 3)
        seen = [0, 1, 3, 4, 5, 6, 7]
        rest = [(tau[:, seen], gram[seen][:, seen]) for tau, gram in pairs if gram is not None]
        close(found[:, seen], regmean_oracle(rest))

    def test_of_the_same_few_inputs_the_mean_beside_them(self, generator: Generator) -> None:
        """Without shrinking, what is orthogonal to all inputs is left open."""
        x = torch.randn(2, 8, generator=generator)
        pairs = [(torch.randn(12, 8, generator=generator), x.mT @ x) for _ in range(3)]
        close(merge(make_rule("regmean", {"shrink": 1.0}), pairs), sum(float64(tau) for tau, _ in pairs) / 3, 5e-3)

    def test_nothing_but_zeros_is_the_mean(self, generator: Generator) -> None:
        pairs = [(tau, torch.zeros(8, 8)) for tau, _ in grams(generator, 4)]
        close(merge(make_rule("regmean"), pairs), sum(float64(tau) for tau, _ in pairs) / 4, 1e-6)

    @pytest.mark.parametrize("scale", [1e-20, 1e20])
    def test_any_scale(self, scale: float, generator: Generator) -> None:
        pairs = [(tau, gram * scale) for tau, gram in grams(generator, 3) if gram is not None]
        close(merge(make_rule("regmean"), pairs), regmean_oracle(pairs))

    def test_never_fails_however_little_of_a_gram_it_is(self, generator: Generator) -> None:
        odd = torch.ones(8, 8).mul(-1).fill_diagonal_(1)
        found = merge(make_rule("regmean", {"shrink": 1.0}), [(torch.randn(12, 8, generator=generator), odd)])
        assert bool(torch.isfinite(found).all())

    def test_what_is_no_linear_layer_is_averaged(self, generator: Generator) -> None:
        pairs: list[Pair] = [(torch.randn(7, generator=generator), None) for _ in range(3)]
        close(merge(make_rule("regmean"), pairs, matrix=False), sum(float64(tau) for tau, _ in pairs) / 3, 1e-6)

    @pytest.mark.parametrize("shrink", [-0.1, 1.1, float("nan")])
    def test_shrink_out_of_range(self, shrink: float) -> None:
        with pytest.raises(ValueError, match="shrink is from 0 to 1"):
            make_rule("regmean", {"shrink": shrink})


@pytest.fixture(params=["fisher", "regmean"])
def rule(request: pytest.FixtureRequest) -> Rule:
    return make_rule(request.param)


def pairs_for(rule: Rule, generator: Generator, count: int) -> list[Pair]:
    return fishers(generator, count) if rule.name == "fisher" else grams(generator, count)


class TestBoth:
    def test_order_does_not_matter(self, rule: Rule, generator: Generator) -> None:
        pairs = pairs_for(rule, generator, 4)
        pairs[1] = (torch.zeros(12, 8), None)  # changes nothing here, and says nothing of it
        expected = merge(rule, pairs)
        for order in permutations(pairs):
            close(merge(rule, order), expected, 1e-6)

    def test_taken_out_it_leaves_what_would_be_without_it(self, rule: Rule, generator: Generator) -> None:
        pairs = pairs_for(rule, generator, 4)
        state = fold(rule, pairs)
        assert rule.accumulation.take_out is not None
        for number in range(4):
            task_vector, statistics = pairs[number]
            rest = rule.accumulation.take_out(state, task_vector, Step(matrix=True, seed=0, statistics=statistics))
            close(published(rule, rest, 3), merge(rule, pairs[:number] + pairs[number + 1 :]), 1e-6)

    def test_so_it_does_where_it_outweighed_the_others(self, rule: Rule, generator: Generator) -> None:
        *pairs, (task_vector, statistics) = pairs_for(rule, generator, 4)
        assert statistics is not None
        state = fold(rule, [pairs[0], (task_vector, 1e6 * statistics), *pairs[1:]])
        assert rule.accumulation.take_out is not None
        step = Step(matrix=True, seed=0, statistics=1e6 * statistics)
        rest = rule.accumulation.take_out(state, task_vector, step)
        close(published(rule, rest, 3), merge(rule, pairs), 1e-6)

    @pytest.mark.parametrize("options", [{}, {"floor": 0.0}], ids=["default", "floor 0"])
    def test_small_weights_that_stay_are_no_rounding(
        self, rule: Rule, options: dict[str, float], generator: Generator
    ) -> None:
        """Fishers of one tensor differ by many orders of magnitude, element by element."""
        if options and rule.name != "fisher":
            return
        rule = make_rule(rule.name, options)
        *pairs, (task_vector, statistics) = pairs_for(rule, generator, 4)
        assert statistics is not None
        loud = 1e3 * statistics
        state = fold(rule, [*pairs, (task_vector, loud)])
        assert rule.accumulation.take_out is not None
        rest = rule.accumulation.take_out(state, task_vector, Step(True, 0, loud))
        close(published(rule, rest, 3), merge(rule, pairs), 1e-6)

    def test_an_input_that_only_the_one_taken_out_had_seen(self, rule: Rule, generator: Generator) -> None:
        """Rounding is not divided by rounding."""
        pairs = pairs_for(rule, generator, 3)
        silent = []
        for task_vector, statistics in pairs[1:]:
            assert statistics is not None
            statistics[3] = 0
            statistics[:, 3] = 0
            silent.append((task_vector, statistics))
        zero_floor = make_rule(rule.name, {"floor": 0.0} if rule.name == "fisher" else {})
        state = fold(zero_floor, [pairs[0], *silent])
        assert zero_floor.accumulation.take_out is not None
        rest = zero_floor.accumulation.take_out(state, pairs[0][0], Step(True, 0, pairs[0][1]))
        close(published(zero_floor, rest, 2), merge(zero_floor, silent), 1e-6)

    def test_who_says_nothing_has_no_weight(self, rule: Rule, generator: Generator) -> None:
        pairs = pairs_for(rule, generator, 2)
        close(merge(rule, [*pairs, (torch.zeros(12, 8), None)]), merge(rule, pairs), 1e-6)

    def test_inputs_are_left_alone(self, rule: Rule, generator: Generator) -> None:
        task_vector, statistics = pairs_for(rule, generator, 1)[0]
        assert statistics is not None
        before = fold(rule, pairs_for(rule, generator, 2))
        copies = [tensor.clone() for tensor in (task_vector, statistics, *before.values())]
        after = rule.accumulation.fold(before, task_vector, Step(matrix=True, seed=0, statistics=statistics)).state
        published(rule, after, 3)
        for tensor, copy in zip((task_vector, statistics, *before.values()), copies, strict=True):
            assert torch.equal(tensor, copy)


class TestIsGram:
    @pytest.mark.parametrize("rows", [1, 5, 500])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_grams_are(self, rows: int, dtype: torch.dtype, generator: Generator) -> None:
        gram = gram_of(generator, 96, rows)
        gram[3] = gram[:, 3] = 0
        assert is_gram(gram.to(dtype).float(), torch.finfo(dtype).eps)

    @pytest.mark.parametrize("change", [(0, 1, 3.0), (0, 1, -3.0), (2, 2, -1.0), (2, 2, 0.0), (2, 2, 1e31)], ids=repr)
    def test_others_are_not(self, change: tuple[int, int, float], generator: Generator) -> None:
        row, column, factor = change
        gram = gram_of(generator, 8, 50)
        gram[row, column] = factor if row == column else gram[row, column] * factor
        assert not is_gram(gram, torch.finfo(torch.float32).eps)

    def test_negative_eigenvalues(self) -> None:
        assert not is_gram(torch.ones(8, 8).mul(-1).fill_diagonal_(1), 1e-7)
