"""mergekit's task arithmetic over FOLDER/base and the other checkpoints of FOLDER, weight 0.3 each: one JSON line.

It does in this process, on the CPU, what this command does:
mergekit-yaml CONFIG OUT --num-threads N --no-copy-tokenizer --no-write-model-card --quiet
"""

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors import safe_open


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds base/ and the checkpoints' folders")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keep the merged model here; a temporary folder where not given")
    arguments = parser.parse_args()
    options = MergeOptions(
        num_threads=arguments.threads,
        copy_tokenizer=False,  # these models have none
        write_model_card=False,  # it asks huggingface.co about each model
        quiet=True,
    )
    options.apply_global_options()
    imports_bytes = _memory("VmRSS")
    with tempfile.TemporaryDirectory(dir=arguments.folder.parent) as temporary:
        config, out = _config(arguments.folder), arguments.out or Path(temporary)
        began = time.perf_counter()
        run_merge(config, str(out), options)
        total = time.perf_counter() - began
        peak_bytes = _memory("VmHWM")
        if _names(out) != _names(arguments.folder / "base"):
            parser.exit(1, "mergekit has left tensors out\n")
    figures = {
        "total_s": total,  # planning, reading, merging and writing; not the imports
        "peak_bytes": peak_bytes,
        "imports_bytes": imports_bytes,
        "version": version("mergekit"),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(figures))


def _config(folder: Path) -> MergeConfiguration:
    checkpoints = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "base")
    return MergeConfiguration.model_validate(
        {
            "merge_method": "task_arithmetic",
            "base_model": str(folder / "base"),
            "models": [{"model": str(path), "parameters": {"weight": 0.3}} for path in checkpoints],
        }
    )


def _names(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names |= set(opened.keys())
    return names


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
