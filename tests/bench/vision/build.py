"""Building the suite: a base, and for each task an expert, a frozen head, test images, and what both models reach."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import save_file

from tests.bench.vision.demo import (
    Encoder,
    Head,
    Task,
    accuracy,
    fine_tune,
    fine_tuning_steps,
    pretrain,
    probe,
    save,
)
from tests.bench.vision.tasks import make_suite


class Recipe(NamedTuple):
    """How long to train, and from which seed."""

    seed: int = 0
    pretraining_steps: int = 1500
    epochs: int = 3
    """Of fine-tuning."""


def build(folder: Path, recipe: Recipe, names: Collection[str] = ()) -> None:
    """Write the suite into a folder: base/, and tasks/<name>/ for the tasks that are named, or for all.

    A task's files are the same whichever others are built.

    Raises:
      FileExistsError: there is one already.
      ValueError: there is no task of that name.
    """
    if (folder / "base").exists():
        raise FileExistsError(f"{folder} has a suite already: remove it, or name another folder")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small, and sums in another order are other sums
    try:
        with torch.random.fork_rng(devices=[]):
            _build(folder, recipe, names)
    finally:
        torch.set_num_threads(threads)


def _build(folder: Path, recipe: Recipe, names: Collection[str]) -> None:
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    train, tasks = make_suite(generator)
    if unknown := set(names) - {task.name for task in tasks}:
        raise ValueError(f"no such task: {', '.join(sorted(unknown))}; there are {', '.join(t.name for t in tasks)}")
    chosen = [task for task in tasks if not names or task.name in names]
    columns = (TextColumn("training {task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        total = recipe.pretraining_steps + sum(fine_tuning_steps(task, recipe.epochs) for task in chosen)
        bar = progress.add_task("base", total=total)

        def on_step() -> None:
            progress.advance(bar)

        base = pretrain(train, generator, on_step, recipe.pretraining_steps)
        save(base, folder / "base")
        for task in chosen:
            progress.update(bar, description=task.name)
            head = probe(base, task.train)
            order = torch.Generator().manual_seed(recipe.seed)
            expert = fine_tune(base, task, head, order, on_step, recipe.epochs)
            _save_task(folder / "tasks" / task.name, task, head, base, expert)


def _save_task(folder: Path, task: Task, head: Head, base: Encoder, expert: Encoder) -> None:
    save(expert, folder)
    save_file({"center": head.center, "prototypes": head.prototypes}, folder / "head.safetensors")
    images, labels = task.test.images.contiguous(), task.test.labels.contiguous()
    save_file({"images": images, "labels": labels}, folder / "test.safetensors")
    meta = {
        "classes": len(head.prototypes),
        "train": len(task.train),
        "test": len(task.test),
        "base_accuracy": accuracy(base, head, task.test),
        "finetuned_accuracy": accuracy(expert, head, task.test),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
