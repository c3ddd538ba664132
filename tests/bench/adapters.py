"""A rank-16 adapter folded as factors, against the same update handed in as a whole model: time, and state on disk."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import Plan, PlannedTensor, Treatment, make_plan
from foldind.checkpoints.tensors import TensorReader
from foldind.state.accumulators import AccumulatedState
from foldind.state.layout import ACCUMULATED, Representation
from safetensors.torch import save_file
from torch import Generator, Tensor

from tests.bench import llama
from tests.bench.settings import Settings
from tests.bench.worker import Worker, compute_bases, fold

RANK = 16
RUNS = 5
SIZE = "0.3B"


def run(folder: Path, settings: Settings) -> None:
    """Fold one adapter onto another, both ways, and print the figures."""
    base = llama.write(folder / "base", llama.SIZES[SIZE])
    plan = make_plan(open_checkpoint(base))
    (folder / "plan.json").write_text(plan.to_json())
    adapters = [write_adapter(folder / f"adapter-{seed}", plan, seed) for seed in (1, 2)]
    whole = write_whole(folder / "whole", base, plan, seed=2)
    worker = Worker()
    first = fold(worker, folder, adapters[0], folder / "first")
    factored, dense = folder / "first" / "state", folder / "dense"
    multiply_out(factored, dense, plan)
    compute_bases(worker, plan, dense, folder / "bases")
    ways: dict[str, tuple[Path, Path, Path | None, tuple[str, ...]]] = {
        "as factors, published as an adapter": (adapters[1], factored, None, ("adapter",)),
        "as factors": (adapters[1], factored, None, ("model",)),
        "as a whole model, bases ready": (whole, dense, folder / "bases", ("model",)),
    }
    print(f"## A rank-{RANK} adapter of every linear layer onto another ({SIZE}, both processors)\n")
    print("| handed in | bytes | fold | publish | together | state on disk |")
    print("|---|---|---|---|---|---|")
    states = []
    for number, (way, (submission, state, bases, publish)) in enumerate(ways.items()):
        runs = [
            fold(
                worker,
                folder,
                submission,
                folder / f"way-{number}-{run}",
                (state, first.result),
                bases,
                publish=publish,
            )
            for run in range(RUNS)
        ]
        states.append(folder / f"way-{number}-0" / "state")
        seconds = [
            statistics.median(values)
            for values in zip(*((r.folding, r.publishing, r.folding + r.publishing) for r in runs), strict=True)
        ]
        handed_in = sum(path.stat().st_size for path in submission.iterdir()) / 1e6
        on_disk = sum(digest.size for digest in runs[0].result.state_files.values()) / 1e6
        times = " | ".join(f"{value:.2f} s" for value in seconds)
        print(f"| {way} | {handed_in:.0f} MB | {times} | {on_disk:.0f} MB |", flush=True)
    worker.end()
    print(f"\nThe states differ by {difference(*states[1:], plan):.1e} of the norm, in the tensor that differs most.\n")


def _factors(plan: Plan, seed: int) -> Iterator[tuple[PlannedTensor, Tensor, Tensor]]:
    for number, tensor in enumerate(plan.folded):
        if tensor.treatment is Treatment.PROJECTED:
            generator = Generator().manual_seed(1000 * seed + number)
            rows, columns = tensor.shape
            yield (
                tensor,
                1e-3 * torch.randn(rows, RANK, generator=generator),
                torch.randn(RANK, columns, generator=generator),
            )


def write_adapter(folder: Path, plan: Plan, seed: int) -> Path:
    tensors = {}
    for tensor, up, down in _factors(plan, seed):
        module = f"base_model.model.{tensor.name.removesuffix('.weight')}"
        tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def write_whole(folder: Path, base: Path, plan: Plan, seed: int) -> Path:
    checkpoint = open_checkpoint(base)
    with TensorReader(base) as reader:
        tensors = {name: reader.read(tensor).float() for name, tensor in checkpoint.tensors.items()}
    for tensor, up, down in _factors(plan, seed):
        tensors[tensor.name] += up @ down
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def multiply_out(factored: Path, dense: Path, plan: Plan) -> None:
    with AccumulatedState(factored) as state:
        tensors = {
            tensor.name: torch.zeros(tensor.shape)
            if state.representation(tensor.name) is Representation.ZERO
            else state.read(tensor.name, None)
            for tensor in plan.folded
        }
    dense.mkdir()
    save_file(tensors, dense / ACCUMULATED)


def difference(one: Path, other: Path, plan: Plan) -> float:
    with AccumulatedState(one) as first, AccumulatedState(other) as second:
        found = []
        for tensor in plan.folded:
            if first.representation(tensor.name) is not Representation.ZERO:
                expected = second.read(tensor.name, None).double()
                found.append(float((first.read(tensor.name, None) - expected).norm() / expected.norm()))
    return max(found)
