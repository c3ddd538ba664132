"""A suite of real fine-tuned models, merged and published as an adapter: what it retains at each rank."""

import shutil
from pathlib import Path

from foldin.adapter import cut_to_rank
from foldind.checkpoints.checkpoint import open_checkpoint
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from transformers.utils import logging

from tests.bench.settings import Settings
from tests.checkpoints.folding import Stream

RANKS = (4, 8, 16, 32, 64, 128, 256, 384)


def run(folder: Path, settings: Settings) -> None:
    """Merge, print the figures, and leave what PEFT makes of the adapters in settings.keep."""
    if settings.suite is None:
        print("## Adapters of a merged model: skipped, for no --suite was given\n")
        return
    suite = settings.suite
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tasks = [suite / "tasks" / name for name in settings.order] or sorted((suite / "tasks").iterdir())
    shutil.copytree(suite / "base", folder / "base")
    stream = Stream(folder, None, publish=("model", "adapter"))
    for task in tasks:
        result = stream.fold_folder(task)
    assert result.adapter
    assert not result.adapter.left_out
    print(f"## Adapters of {len(tasks)} merged whole models\n")
    print("| rank | bytes | of the model | energy retained |")
    print("|---|---|---|---|")
    nbytes = sum(header.length for header in open_checkpoint(stream.base).headers.values())
    for rank in RANKS:
        cut = shutil.copytree(stream.snapshot_folder / "adapter", folder / f"rank-{rank}")
        cut_to_rank(cut, rank)
        size = (cut / "adapter_model.safetensors").stat().st_size
        retained = result.adapter.retained[min(rank, result.adapter.rank) - 1]
        print(f"| {rank} | {size:,} | {size / nbytes:.1%} | {retained:.2%} |", flush=True)
        if settings.keep:
            _merge_by_peft(stream.base, cut, settings.keep / f"rank-{rank}")
    if settings.keep:
        shutil.copytree(stream.snapshot_folder, settings.keep / "whole", ignore=shutil.ignore_patterns("adapter"))
    print()


def _merge_by_peft(base: Path, adapter: Path, target: Path) -> None:
    """Write the base with an adapter merged into it, under the base's names."""
    merged = PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter).merge_and_unload()
    found, tensors = merged.state_dict(), load_file(base / "model.safetensors")
    assert found.keys() >= {name for name, tensor in tensors.items() if tensor.is_floating_point()}
    tensors |= {name: found[name] for name in tensors.keys() & found.keys()}
    target.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
