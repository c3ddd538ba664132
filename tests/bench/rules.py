"""What each merge rule costs: time and memory of a merge, and the size of its state, on ViT-B/32 shapes."""

import shutil
from pathlib import Path
from statistics import median

import torch
from foldind.checkpoints.checkpoint import STATISTICS, open_checkpoint
from foldind.checkpoints.plan import Plan, make_plan
from foldind.checkpoints.statistics import Kind, statistics_plan
from foldind.merging.catalog import CATALOG
from safetensors.torch import save_file
from torch import Tensor

from tests.bench import vit
from tests.bench.settings import Settings
from tests.bench.worker import Folded, Worker, fold

FOLDS = 4
INPUTS = 256
"""Rows of random inputs that a layer's Gram matrix is made of."""


def run(folder: Path, settings: Settings) -> None:
    """Merge by every rule, or by those that are named, and print the figures."""
    base = vit.make_base(folder / "base")
    checkpoints = [vit.make_checkpoint(folder / str(seed), base, seed=seed) for seed in (1, 2)]
    plan = make_plan(open_checkpoint(folder / "base"))
    (folder / "plan.json").write_text(plan.to_json())
    parameters = sum(tensor.numel() for tensor in base.values())
    print("## What each merge rule costs (ViT-B/32 shapes, 87.5M float32, both processors)\n")
    print(
        "One worker, without the daemon, one thread a product, bases computed by the merge; medians of merges 2 to 4.\n"
    )
    print("| rule | fold | publish | worker's peak, MB | state, bytes a parameter |\n|---|---|---|---|---|")
    for name in settings.rules or CATALOG:
        if kind := CATALOG[name].statistics:
            for seed, checkpoint in enumerate(checkpoints):
                save_file(_statistics(plan, kind, seed), checkpoint / STATISTICS)
        merges, state = _merge(name, folder, checkpoints)
        peak = max(one.result.peak_resident_bytes for one in merges) // 2**20
        fold_seconds, publish_seconds = (
            median(values) for values in zip(*(one[1:] for one in merges[1:]), strict=True)
        )
        size = sum(path.stat().st_size for path in state.iterdir()) / parameters
        print(f"| `{name}` | {fold_seconds:.2f} s | {publish_seconds:.2f} s | {peak} | {size:.1f} |", flush=True)
        shutil.rmtree(folder / name)
    print()


def _statistics(plan: Plan, kind: Kind, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for tensor in statistics_plan(plan, kind).folded:
        if kind == "like":
            found[tensor.name] = torch.randn(tensor.shape, generator=generator).square()
        else:
            inputs = torch.randn(INPUTS, tensor.shape[-1], generator=generator)
            found[tensor.name] = inputs.mT @ inputs / INPUTS
    return found


def _merge(rule: str, folder: Path, checkpoints: list[Path]) -> tuple[list[Folded], Path]:
    worker = Worker()
    merges: list[Folded] = []
    state = bases = None
    for number in range(FOLDS):
        place = folder / rule / str(number)
        before = (state, merges[-1].result) if state else None
        merges.append(fold(worker, folder, checkpoints[number % len(checkpoints)], place, before, bases, rule=rule))
        if number:
            shutil.rmtree(folder / rule / str(number - 1))
        state, bases = place / "state", place / "new_bases"
    worker.end()
    assert state is not None
    return merges, state
