"""The plots: accuracy against the number of merges, and a heat map a rule. SVG, by matplotlib, which is optional.

The same figures give the same bytes. Text is of a grey that reads on white and on black, on no background.
"""

import io
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foldind.evaluation.figures import mean_accuracy
from foldind.evaluation.orders import Order
from foldind.evaluation.results import Results
from foldind.state.durable import write_file

ACCURACY = "accuracy.svg"
HOW_TO_GET_PLOTS = "no plots: they need matplotlib; pip install matplotlib, and run the same command again"

_GREY = "#7b7b7b"
_COLOURS = ("#3b82c4", "#e07b39", "#3a9e6e", "#c2558c", "#8f7ae0", "#b59f2b", "#4fa8b8", "#d05353")
_STYLE: Any = {
    "svg.hashsalt": "foldin",
    "svg.fonttype": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _GREY),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor", "legend.facecolor"), "none"),
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_plots(folder: Path, results: Results, rules: Sequence[str], orders: Sequence[Order]) -> list[str]:
    """Write all plots into a folder, and return their names.

    Raises:
      ImportError: there is no matplotlib.
      OSError: they cannot be written.
    """
    import matplotlib as mpl

    plots = {}
    with mpl.rc_context(_STYLE):
        plots[ACCURACY] = _accuracy(results, rules, orders)
        for rule, name in zip(rules, heatmap_names(rules), strict=True):
            if cells := _cells(results, rule, orders):
                plots[name] = _heatmap(rule, cells, orders)
        for name, figure in plots.items():
            content = io.BytesIO()
            figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
            write_file(folder / name, content.getvalue())
    return list(plots)


def heatmap_names(rules: Sequence[str]) -> list[str]:
    """Return a file name for every rule's heat map; all differ."""
    names: list[str] = []
    for rule in rules:
        stem = f"heatmap-{re.sub('[^A-Za-z0-9._=-]+', '-', rule)}"
        names.append(next(name for name in _numbered(stem) if name not in names))
    return names


def _numbered(stem: str) -> Iterator[str]:
    yield f"{stem}.svg"
    number = 2
    while True:
        yield f"{stem}-{number}.svg"
        number += 1


def _accuracy(results: Results, rules: Sequence[str], orders: Sequence[Order]) -> Any:
    last = len(orders[0])
    figure, axes = _figure(9, 4.5)
    for number, rule in enumerate(rules):
        means = _means(results, rule, orders)
        if not means:
            continue
        colour, steps = _COLOURS[number % len(_COLOURS)], list(means)
        middle = [statistics.fmean(values) for values in means.values()]
        around = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in means.values()]
        dashes = ("-", "--", "-.", ":")[number // len(_COLOURS) % 4]
        axes.plot(steps, middle, dashes, color=colour, marker="o", markersize=4, label=_plain(rule))
        low, high = ([mean + sign * width for mean, width in zip(middle, around, strict=True)] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    for label, accuracy, dashes in (("experts", results.experts, "--"), ("base", results.base, ":")):
        if len(accuracy) == last:
            axes.axhline(
                100 * mean_accuracy(accuracy), color=_GREY, linestyle=dashes, linewidth=1, label=f"{label}, all tasks"
            )
    axes.set_xlabel("checkpoints merged")
    axes.set_ylabel("mean accuracy on the merged tasks, %")
    axes.set_xticks(range(1, last + 1))
    axes.set_xlim(0.5, last + 0.5)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper")
    return figure


def _means(results: Results, rule: str, orders: Sequence[Order]) -> dict[int, list[float]]:
    means: dict[int, list[float]] = {}
    for order in orders:
        for number, step in results.steps.get((rule, order), {}).items():
            if len(step.accuracy) == number:  # else it was not scored on all that was merged by then
                means.setdefault(number, []).append(100 * mean_accuracy(step.accuracy))
    return dict(sorted(means.items()))


def _cells(results: Results, rule: str, orders: Sequence[Order]) -> dict[tuple[str, int], list[float]]:
    cells: dict[tuple[str, int], list[float]] = {}
    for order in orders:
        for number, step in results.steps.get((rule, order), {}).items():
            for task, accuracy in step.accuracy.items():
                cells.setdefault((task, number), []).append(100 * accuracy)
    return cells


def _heatmap(rule: str, cells: Mapping[tuple[str, int], list[float]], orders: Sequence[Order]) -> Any:
    import matplotlib as mpl

    tasks, last = (orders[0] if len(orders) == 1 else sorted(orders[0])), len(orders[0])
    values = [
        [statistics.fmean(cells[task, step]) if (task, step) in cells else math.nan for step in range(1, last + 1)]
        for task in tasks
    ]
    figure, axes = _figure(2.5 + 0.62 * last, 1.4 + 0.36 * last)
    colours = mpl.colormaps["viridis"]
    mesh = axes.pcolormesh(range(last + 1), range(last + 1), values, cmap=colours)
    for row, of_task in enumerate(values):
        for column, value in enumerate(of_task):
            if not math.isnan(value):
                red, green, blue, _ = mesh.to_rgba(value)
                ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
                axes.text(column + 0.5, row + 0.5, f"{value:.1f}", color=ink, fontsize=8, ha="center", va="center")
    axes.invert_yaxis()
    axes.set_xticks([step - 0.5 for step in range(1, last + 1)], [str(step) for step in range(1, last + 1)])
    axes.set_yticks([row + 0.5 for row in range(last)], tasks)
    axes.tick_params(length=0)
    axes.set_xlabel("checkpoints merged")
    # A task counts in the orders in which it is merged by then.
    over = f", mean over {len(orders)} orders" if len(orders) > 1 else ""
    figure.suptitle(f"{_plain(rule)}\naccuracy, %{over}", fontsize=9)
    return figure


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _plain(text: str) -> str:
    return text.replace("$", r"\$")
