"""Merges of models from 0.3 to 1.1 billion parameters by one worker: time, its split, and memory at several budgets."""

import math
import shutil
from pathlib import Path

from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import Treatment, make_plan

from tests.bench import llama
from tests.bench.settings import Settings
from tests.bench.worker import Worker, compute_bases, fold

BUDGETS = (512 * 2**20, 2**30, 2 * 2**30, 4 * 2**30)


def run(folder: Path, settings: Settings) -> None:
    """Measure every size, and print the figures."""
    print("## Larger models (Llama shapes, bfloat16), both processors\n")
    print(
        "| | parameters | bases | merge, bases ready: fold / publish | peak at budgets of 0.5 / 1 / 2 / 4 GiB |", end=""
    )
    print(" peak of a merge that computes the bases, 0.5 GiB |")
    print("|---|---|---|---|---|---|")
    for name, size in llama.SIZES.items():
        place = folder / name
        place.mkdir()
        print(f"| {name} | {_measure(place, size)} |", flush=True)
        shutil.rmtree(place)
    print()


def _measure(folder: Path, size: llama.Size) -> str:
    base = llama.write(folder / "base", size)
    checkpoints = [llama.write(folder / f"task-{seed}", size, seed) for seed in (1, 2)]
    plan = make_plan(open_checkpoint(base))
    (folder / "plan.json").write_text(plan.to_json())
    state, bases = folder / "first" / "state", folder / "bases"
    worker = Worker()
    first = fold(worker, folder, checkpoints[0], folder / "first")
    seconds = compute_bases(worker, plan, state, bases)
    worker.end()
    peaks = []
    for budget in BUDGETS:
        place, worker = folder / str(budget), Worker(budget)
        merge = fold(worker, folder, checkpoints[1], place, (state, first.result), bases, budget)
        assert merge.result.bases_computed == 0
        peaks.append(f"{merge.result.peak_resident_bytes // 2**20}")
        shutil.rmtree(place)
        worker.end()
    worker = Worker(BUDGETS[0])
    without = fold(worker, folder, checkpoints[1], folder / "without", (state, first.result), budget=BUDGETS[0])
    assert without.result.bases_computed > 0
    worker.end()
    parameters = {tensor.name: math.prod(tensor.shape) for tensor in plan.folded}
    projected = sum(parameters[tensor.name] for tensor in plan.folded if tensor.treatment is Treatment.PROJECTED)
    return (
        f"{sum(parameters.values()) / 1e6:.0f}M, {projected / 1e6:.0f}M projected | {seconds:.0f} s | "
        f"{merge.folding:.1f} / {merge.publishing:.1f} s | {' / '.join(peaks)} MB | "
        f"{without.result.peak_resident_bytes // 2**20} MB"
    )
