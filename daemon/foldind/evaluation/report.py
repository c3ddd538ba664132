"""The report: curves.csv, summary.csv and table.md."""

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from foldind.evaluation.figures import RuleFigures, Spread, figures_of
from foldind.evaluation.orders import Order
from foldind.evaluation.results import Results
from foldind.state.durable import write_file

CURVES, SUMMARY, TABLE = "curves.csv", "summary.csv", "table.md"

_SPREADS: dict[str, Callable[[RuleFigures], Spread | None]] = {
    "acc": lambda figures: figures.accuracy,
    "difference": lambda figures: figures.difference,
    "normalised": lambda figures: figures.normalised,
    "gain_kept": lambda figures: figures.gain_kept,
    "bwt": lambda figures: figures.backward_transfer,
}

_EXPLANATIONS = """\
ACC: mean accuracy over all tasks after the last merge, in %, ± standard deviation over the orders. Difference: ACC
minus that of the first rule over the same orders, in points, ± standard error. Normalised: mean ratio to the accuracy
of each task's own fine-tuned model, in %. Gain kept: share of what fine-tuning gained over the base, in %. BWT: mean
over all tasks but the last of the final accuracy minus that just after the task was merged, in points. Seconds a fold:
median, with the bases and the published model. State: bytes of the accumulated state per parameter of the base.
"""


def write_report(folder: Path, results: Results, rules: Sequence[str], orders: Sequence[Order]) -> None:
    """Write all three files into a folder. Raises OSError."""
    figures = figures_of(results, rules, orders)
    write_file(folder / CURVES, _curves(results, rules, orders).encode())
    write_file(folder / SUMMARY, _summary(figures).encode())
    write_file(folder / TABLE, _markdown(results, figures, orders).encode())


def _curves(results: Results, rules: Sequence[str], orders: Sequence[Order]) -> str:
    rows = (
        (rule, ",".join(order), number, task, repr(accuracy))
        for rule in rules
        for order in orders
        for number, step in sorted(results.steps.get((rule, order), {}).items())
        for task, accuracy in step.accuracy.items()
    )
    return _csv(("rule", "order", "step", "task", "accuracy"), rows)


def _summary(figures: Iterable[RuleFigures]) -> str:
    spreads = [f"{name}_{column}" for name in _SPREADS for column in ("mean", "std", "se")]
    header = ("rule", "orders", *spreads, "fold_seconds", "state_bytes_per_parameter")
    rows = []
    for entry in figures:
        row: list[object] = [entry.rule, entry.accuracy.orders if entry.accuracy else 0]
        for pick in _SPREADS.values():
            value = pick(entry)
            row += [value.mean, value.deviation, value.error] if value else [None] * 3
        rows.append((*row, entry.fold_seconds, entry.state_bytes_per_parameter))
    return _csv(header, rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _markdown(results: Results, figures: Sequence[RuleFigures], orders: Sequence[Order]) -> str:
    tasks = sorted(orders[0])
    headings = (
        *("rule", "orders", "ACC", "difference to the first", "normalised", "gain kept", "BWT"),
        *("seconds a fold", "state, bytes a parameter"),
    )
    rows = [
        (
            entry.rule,
            str(entry.accuracy.orders if entry.accuracy else 0),
            _told(entry.accuracy, 100, 2),
            _difference(entry.difference),
            _told(entry.normalised, 100, 1, with_deviation=False),
            _told(entry.gain_kept, 100, 1, with_deviation=False),
            _told(entry.backward_transfer, 100, 2, with_deviation=False, sign="+"),
            "" if entry.fold_seconds is None else f"{entry.fold_seconds:.2f}",
            "" if entry.state_bytes_per_parameter is None else f"{entry.state_bytes_per_parameter:.2f}",
        )
        for entry in figures
    ]
    models: list[tuple[str, dict[str, float]]] = [("base", results.base), ("experts", results.experts)]
    models += [(entry.rule, _final(results, entry.rule, orders)) for entry in figures]
    by_task = [
        (name, *(f"{100 * accuracy[task]:.1f}" if task in accuracy else "" for task in tasks), _mean(accuracy, tasks))
        for name, accuracy in models
    ]
    return "\n".join(
        (
            f"## {len(tasks)} tasks, {len(orders)} {'orders' if len(orders) > 1 else 'order'}\n",
            _table(headings, rows),
            _EXPLANATIONS,
            "## Accuracy by task after the last merge, %\n",
            _table(("model", *tasks, "mean"), by_task),
            "Orders:\n",
            *(f"{number}. {', '.join(order)}" for number, order in enumerate(orders, 1)),
            "",
        )
    )


def _final(results: Results, rule: str, orders: Sequence[Order]) -> dict[str, float]:
    last = [
        steps[len(order)].accuracy for order in orders if len(order) in (steps := results.steps.get((rule, order), {}))
    ]
    return {task: statistics.fmean(accuracy[task] for accuracy in last) for task in orders[0]} if last else {}


def _mean(accuracy: dict[str, float], tasks: Sequence[str]) -> str:
    return f"{100 * statistics.fmean(accuracy.values()):.1f}" if len(accuracy) == len(tasks) else ""


def _told(value: Spread | None, scale: float, digits: int, *, with_deviation: bool = True, sign: str = "") -> str:
    if value is None:
        return ""
    told = f"{scale * value.mean:{sign}.{digits}f}"
    return told if value.deviation is None or not with_deviation else f"{told} ± {scale * value.deviation:.{digits}f}"


def _difference(value: Spread | None) -> str:
    if value is None:
        return ""
    told = f"{100 * value.mean:+.2f}"
    return told if value.error is None else f"{told} ± {100 * value.error:.2f}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(headings) - 1)]
    lines = [headings, ruler, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
