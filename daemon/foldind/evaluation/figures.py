"""What is reported of the measurements; pure functions.

With a[t][i] the accuracy on task i after t folds, of T: ACC = mean_i a[T][i], and BWT the mean over all tasks but the
last of a[T][i] - a[i][i]: what a task lost (or gained) by all that was merged after it.

Source: Lopez-Paz and Ranzato 2017, Gradient Episodic Memory, section 2.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from foldind.evaluation.orders import Order
from foldind.evaluation.results import Results, Step

Accuracies = Mapping[str, float]
"""Share in [0, 1] by task."""
Curves = Mapping[int, Accuracies]
"""Accuracies by the number of folds."""


class Spread(NamedTuple):
    """A mean over orders."""

    mean: float
    deviation: float | None
    """Sample standard deviation; None of a single one."""
    orders: int

    @property
    def error(self) -> float | None:
        """Standard error of the mean."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.orders)


@dataclass(frozen=True)
class RuleFigures:
    """What is reported of a rule, over all orders that were merged to the end; None: not known."""

    rule: str
    accuracy: Spread | None
    """ACC."""
    difference: Spread | None
    """ACC minus that of the first rule, order by order."""
    normalised: Spread | None
    gain_kept: Spread | None
    backward_transfer: Spread | None
    """BWT."""
    fold_seconds: float | None
    """Median."""
    state_bytes_per_parameter: float | None
    """Of the last state."""


def mean_accuracy(accuracy: Accuracies) -> float:
    """Return the mean over tasks; of those after the last fold, ACC."""
    return statistics.fmean(accuracy.values())


def backward_transfer(order: Order, curves: Curves) -> float | None:
    """Return BWT; None where an accuracy that it needs is missing, or there is one task only."""
    try:
        return statistics.fmean(
            curves[len(order)][task] - curves[step][task] for step, task in enumerate(order[:-1], start=1)
        )
    except (KeyError, statistics.StatisticsError):
        return None


def normalised_accuracy(accuracy: Accuracies, experts: Accuracies) -> float | None:
    """Return the mean over tasks of the accuracy's ratio to the expert's; None where that is not known."""
    if any(not experts.get(task) for task in accuracy):
        return None
    return statistics.fmean(accuracy[task] / experts[task] for task in accuracy)


def gain_kept(accuracy: Accuracies, base: Accuracies, experts: Accuracies) -> float | None:
    """Return the share of the experts' gain over the base that a model keeps; None where there is none."""
    if not accuracy.keys() <= base.keys() & experts.keys():
        return None
    gain = math.fsum(experts[task] - base[task] for task in accuracy)
    return math.fsum(accuracy[task] - base[task] for task in accuracy) / gain if gain > 0 else None


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return mean and deviation; None where there is no value, or one is not known."""
    known = list(values)
    numbers = [value for value in known if value is not None]
    if not numbers or len(numbers) < len(known):
        return None
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(statistics.fmean(numbers), deviation, len(numbers))


def curves_of(steps: Mapping[int, Step]) -> Curves:
    """Return the accuracies of an order's steps."""
    return {number: step.accuracy for number, step in sorted(steps.items())}


def figures_of(results: Results, rules: Sequence[str], orders: Sequence[Order]) -> list[RuleFigures]:
    """Return what is reported of each rule."""
    final = {
        (rule, order): mean_accuracy(steps[len(order)].accuracy)
        for rule in rules
        for order in orders
        if len(order) in (steps := results.steps.get((rule, order), {}))
    }
    return [_figures(results, rule, rules[0], orders, final) for rule in rules]


def _figures(
    results: Results, rule: str, first: str, orders: Sequence[Order], final: Mapping[tuple[str, Order], float]
) -> RuleFigures:
    done = [order for order in orders if (rule, order) in final]
    steps = {order: results.steps[rule, order] for order in done}
    last = {order: steps[order][len(order)] for order in done}
    paired = [order for order in done if (first, order) in final]
    seconds = [step.fold_seconds for order in done for step in steps[order].values()]
    parameters = results.subject.parameters if results.subject else 0
    return RuleFigures(
        rule=rule,
        accuracy=spread(final[rule, order] for order in done),
        difference=spread(final[rule, order] - final[first, order] for order in paired) if rule != first else None,
        normalised=spread(normalised_accuracy(last[order].accuracy, results.experts) for order in done),
        gain_kept=spread(gain_kept(last[order].accuracy, results.base, results.experts) for order in done),
        backward_transfer=spread(backward_transfer(order, curves_of(steps[order])) for order in done),
        fold_seconds=statistics.median(seconds) if seconds else None,
        state_bytes_per_parameter=(
            statistics.fmean(last[order].state_bytes for order in done) / parameters if done and parameters else None
        ),
    )
