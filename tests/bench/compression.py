"""Compressed submissions of a suite of real fine-tuned models: size, error, and the models that they are merged to."""

import math
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from foldin.checkpoint import find_checkpoint
from foldin.compression import compress_model
from foldin.recipe import read_recipe
from foldind.checkpoints.checkpoint import Checkpoint, open_checkpoint
from foldind.checkpoints.plan import Plan, make_plan
from foldind.worker.blocks import row_blocks
from foldind.worker.taskvectors import open_task_vectors

from tests.bench.settings import Settings
from tests.checkpoints.folding import Stream

CODINGS: dict[str, tuple[str, float | None]] = {
    "ternary-0.05": ("ternary", 0.05),
    "ternary-0.1": ("ternary", 0.1),
    "ternary-0.2": ("ternary", 0.2),
    "int8": ("int8", None),
}


class Compressed(NamedTuple):
    """One model, compressed."""

    nbytes: int
    error: float
    """||decoded - task vector|| / ||task vector||."""
    seconds: float


def run(folder: Path, settings: Settings) -> None:
    """Measure, print the figures, and leave the merged models in settings.keep."""
    if settings.suite is None:
        print("## Compressed submissions: skipped, for no --suite was given\n")
        return
    suite = settings.suite
    tasks = [suite / "tasks" / name for name in settings.order] or sorted((suite / "tasks").iterdir())
    _keep(_merge(folder / "uncompressed", suite / "base", tasks), settings.keep, "uncompressed")
    plan = make_plan(open_checkpoint(suite / "base"))
    print(f"## Compressed submissions ({len(tasks)} tasks)\n")
    print("| | bytes | below bfloat16 weights | below float32 weights | relative error (range) | seconds a model |")
    print("|---|---|---|---|---|---|")
    for name, (coding, density) in CODINGS.items():
        made, folders = [], []
        for task in tasks:
            (target := folder / name / task.name).mkdir(parents=True)
            folders.append(target)
            made.append(_compress(task, suite / "base", coding, density, target, plan))
        _keep(_merge(folder / f"{name} merged", suite / "base", folders), settings.keep, name)
        print(_row(name, made, plan.float32_bytes))
        shutil.rmtree(folder / name)


def _compress(task: Path, base: Path, coding: str, density: float | None, target: Path, plan: Plan) -> Compressed:
    recipe = read_recipe(coding, base, density)
    assert recipe is not None
    started = time.perf_counter()
    file = compress_model(find_checkpoint(task), recipe, False, target, lambda _: None)
    seconds = time.perf_counter() - started
    error = _error(plan, open_checkpoint(base), open_checkpoint(task), open_checkpoint(target))
    return Compressed(file.path.stat().st_size, error, seconds)


def _error(plan: Plan, base: Checkpoint, model: Checkpoint, compressed: Checkpoint) -> float:
    errors, norms = [], []
    with open_task_vectors(plan, base, model) as exact, open_task_vectors(plan, base, compressed) as decoded:
        for tensor in plan.folded:
            for rows in row_blocks(tensor.shape):
                task_vector = exact.read(tensor, rows).double()
                errors.append(float((decoded.read(tensor, rows) - task_vector).norm()))
                norms.append(float(task_vector.norm()))
    return math.hypot(*errors) / math.hypot(*norms)


def _merge(root: Path, base: Path, submissions: Sequence[Path]) -> Path:
    """Fold them one after the other, and return the folder of the last snapshot."""
    shutil.copytree(base, root / "base")
    stream = Stream(root, None)
    for submission in submissions:
        stream.fold_folder(submission)
    return stream.snapshot_folder


def _keep(snapshot: Path, place: Path | None, name: str) -> None:
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        shutil.copytree(snapshot, place / name)
    shutil.rmtree(snapshot.parent.parent)


def _row(name: str, made: Sequence[Compressed], float32: int) -> str:
    nbytes = statistics.fmean(one.nbytes for one in made)
    errors = [one.error for one in made]
    spread = f"{statistics.fmean(errors):.4f} ({min(errors):.4f} to {max(errors):.4f})"
    seconds = statistics.median(one.seconds for one in made)
    return (
        f"| {name} | {nbytes:,.0f} | {float32 / 2 / nbytes:.1f} | {float32 / nbytes:.1f} | {spread} | {seconds:.1f} |"
    )
