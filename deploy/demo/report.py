"""What the demo shows: a table after every merge, and a plot at the end."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.table import Table

Accuracies = Mapping[str, float]
"""Accuracy in [0, 1] by name of task."""


@dataclass(frozen=True)
class Merge:
    """What was measured after one merge, on all tasks; `merged` and `average` contain the first `version` of them."""

    version: int
    merged: Accuracies
    average: Accuracies


def gain_kept(model: Accuracies, base: Accuracies, experts: Accuracies) -> float:
    """Return the share of the experts' gain over the base that a model keeps, on the tasks that have experts."""
    gained = mean(model[name] - base[name] for name in experts)
    return gained / mean(experts[name] - base[name] for name in experts)


def accuracy_table(base: Accuracies, merge: Merge, experts: Accuracies) -> Table:
    """Return the table of one merge; rows of tasks that are not merged yet are dim."""
    table = Table(
        title=f"v{merge.version}: test accuracy (%)", title_justify="left", caption_justify="left", title_style="bold"
    )
    table.add_column("task")
    for column in ("base", "averaging", f"merged v{merge.version}", "expert"):
        table.add_column(column, justify="right")
    for name in base:
        values = [base[name], merge.average[name], merge.merged[name], experts.get(name)]
        table.add_row(name, *map(_percent, values), style="" if name in experts else "dim")
    table.add_section()
    columns = (base, merge.average, merge.merged, experts)
    means = [mean(column[name] for name in experts) for column in columns]
    table.add_row("mean of the merged tasks", *map(_percent, means), style="bold")
    kept = [gain_kept(model, base, experts) for model in (merge.average, merge.merged)]
    table.add_row("gain kept", "0.0", *map(_percent, kept), "100.0")
    return table


def save_plot(path: Path, base: Accuracies, merges: list[Merge], experts: Accuracies) -> None:
    """Write a PNG: mean accuracy against the number of merges, over all tasks and over those merged so far."""
    import matplotlib as mpl

    mpl.use("Agg")  # no display needed
    from matplotlib import pyplot

    names = list(base)
    versions = [merge.version for merge in merges]
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for panel, title, scope in (
        (panels[0], "all tasks, merged yet or not", lambda version: names),
        (panels[1], "tasks merged so far", lambda version: names[:version]),
    ):
        for label, style, values in (
            ("experts, each on its own task", "k--", [experts for _ in merges]),
            ("merged by Foldin (OPCM)", "C0o-", [merge.merged for merge in merges]),
            ("average of the checkpoints", "C1s-", [merge.average for merge in merges]),
            ("base", "k:", [base for _ in merges]),
        ):
            means = [
                100 * mean(accuracies[name] for name in scope(version))
                for version, accuracies in zip(versions, values, strict=True)
            ]
            panel.plot(versions, means, style, label=label)
        panel.set(title=title, xlabel="checkpoints merged", xticks=versions)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mean test accuracy (%)")
    panels[0].legend(loc="center", bbox_to_anchor=(0.5, 0.7))  # where no curve runs
    figure.suptitle("One merged model, into which one checkpoint after the other is folded")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
