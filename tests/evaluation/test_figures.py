"""ACC, BWT and their like on small matrices, worked out by hand."""

from pathlib import Path

import pytest
from foldind.evaluation.figures import (
    backward_transfer,
    figures_of,
    gain_kept,
    mean_accuracy,
    normalised_accuracy,
    spread,
)
from foldind.evaluation.results import Results, Step, Subject

ORDER = ("a", "b", "c")
MATRIX = {1: {"a": 0.9}, 2: {"a": 0.7, "b": 0.8}, 3: {"a": 0.6, "b": 0.75, "c": 0.95}}
BASE = {"a": 0.5, "b": 0.5, "c": 0.5}
EXPERTS = {"a": 0.9, "b": 0.9, "c": 1.0}


def test_acc() -> None:
    assert mean_accuracy(MATRIX[3]) == pytest.approx(2.3 / 3)


def test_bwt_leaves_out_the_last_task() -> None:
    # a: 0.6 - 0.9, b: 0.75 - 0.8
    assert backward_transfer(ORDER, MATRIX) == pytest.approx((-0.3 - 0.05) / 2)


def test_bwt_of_gains() -> None:
    assert backward_transfer(("a", "b"), {1: {"a": 0.5}, 2: {"a": 0.75, "b": 0.1}}) == pytest.approx(0.25)


@pytest.mark.parametrize(("order", "curves"), [(("a",), {1: {"a": 0.9}}), (ORDER, {3: MATRIX[3]}), (ORDER, {})])
def test_bwt_that_is_not_known(order: tuple[str, ...], curves: dict[int, dict[str, float]]) -> None:
    assert backward_transfer(order, curves) is None


def test_normalised() -> None:
    assert normalised_accuracy(MATRIX[3], EXPERTS) == pytest.approx((0.6 / 0.9 + 0.75 / 0.9 + 0.95) / 3)
    assert normalised_accuracy(MATRIX[3], {"a": 0.9}) is None
    assert normalised_accuracy(MATRIX[3], {**EXPERTS, "a": 0.0}) is None


def test_gain_kept() -> None:
    assert gain_kept(MATRIX[3], BASE, EXPERTS) == pytest.approx((0.1 + 0.25 + 0.45) / (0.4 + 0.4 + 0.5))
    assert gain_kept(MATRIX[3], BASE, {}) is None
    assert gain_kept(MATRIX[3], BASE, BASE) is None


def test_spread() -> None:
    # Deviations from the mean 3: -2, 0, 2; their squares add up to 8, over 2 is 4.
    assert spread([1.0, 3.0, 5.0]) == (3.0, 2.0, 3)
    assert spread([1.0]) == (1.0, None, 1)
    assert spread([]) is None
    assert spread([1.0, None]) is None
    of_four = spread([1.0, 5.0, 1.0, 5.0])
    assert of_four
    assert of_four.error == pytest.approx((16 / 3) ** 0.5 / 2)


def test_rules_are_compared_over_the_orders_that_both_have(tmp_path: Path) -> None:
    orders = [("a", "b"), ("b", "a")]
    with Results(tmp_path / "results.jsonl") as results:
        results.claim(Subject("0", {"a": "1", "b": "2"}, "c", parameters=10, backend="numpy"))
        results.add_base({"a": 0.5, "b": 0.5})
        results.add_expert("a", 1.0)
        results.add_expert("b", 1.0)

        def finish(rule: str, order: tuple[str, ...], mean: float, seconds: float) -> None:
            results.add_step(rule, order, 1, Step({order[0]: 0.9}, seconds, 20))
            results.add_step(rule, order, 2, Step({"a": mean + 0.1, "b": mean - 0.1}, seconds + 1, 40))

        finish("first", orders[0], 0.6, 1)
        finish("first", orders[1], 0.7, 3)
        finish("second", orders[0], 0.7, 1)
        results.add_step("second", orders[1], 1, Step({"b": 0.9}, 100, 20))
        first, second, third = figures_of(results, ["first", "second", "third"], orders)
    assert first.accuracy == (pytest.approx(0.65), pytest.approx(0.005**0.5), 2)
    assert first.difference is None
    assert first.normalised
    assert first.normalised.mean == pytest.approx(0.65)
    assert first.gain_kept
    assert first.gain_kept.mean == pytest.approx(0.3)
    assert first.backward_transfer
    # Order a, b: 0.7 - 0.9; order b, a: 0.6 - 0.9.
    assert first.backward_transfer.mean == pytest.approx((-0.2 - 0.3) / 2)
    assert first.fold_seconds == 2.5
    assert first.state_bytes_per_parameter == 4
    assert second.accuracy == (pytest.approx(0.7), None, 1)
    assert second.difference == (pytest.approx(0.1), None, 1)
    assert second.fold_seconds == 1.5
    assert third.accuracy is None
    assert third.fold_seconds is None
