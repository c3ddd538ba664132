"""FusionBench's general OPCM over FOLDER/base and the other checkpoints of FOLDER, in order of name: one JSON line.

Everything timed is FusionBench's own: its model pool loads (transformers' from_pretrained), its OPCM merges and saves
(transformers' save_pretrained, which is safetensors' save_file), and the seconds are those that its own profiler
recorded. Saving needs its log folder, which it takes from a TensorBoard logger.
"""

import argparse
import json
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

import lightning
import torch
from fusion_bench.method.opcm.opcm_general import OPCM
from fusion_bench.modelpool.clip_vision.modelpool import CLIPVisionModelPool
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from omegaconf import DictConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds base/ and the checkpoints' folders")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keep what it saves here; a temporary folder where not given")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    imports_bytes = _memory("VmRSS")
    with tempfile.TemporaryDirectory(dir=arguments.folder.parent) as temporary, redirect_stdout(sys.stderr):
        seconds = merge(arguments.folder, arguments.out or Path(temporary))
    figures = {
        "load_s": seconds["loading model"],  # of the base, then of each checkpoint
        "merge_s": seconds["merging model"],  # from the second checkpoint on: the first is taken as it is
        "save_s": seconds["saving model"],  # after each merge
        "peak_bytes": _memory("VmHWM"),
        "imports_bytes": imports_bytes,
        "version": version("fusion-bench"),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(figures))


def merge(folder: Path, out: Path) -> dict[str, list[float]]:
    """Run OPCM, and return the seconds of its every action."""
    checkpoints = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "base")
    pool = CLIPVisionModelPool(
        DictConfig({"_pretrained_": str(folder / "base")} | {name: str(folder / name) for name in checkpoints})
    )
    algorithm = OPCM(alpha=0.5, shuffle_order=False, save_on_every_step=True)
    algorithm.fabric = lightning.Fabric(accelerator="cpu", devices=1, loggers=TensorBoardLogger(out))
    algorithm.run(pool)
    return algorithm.profiler.recorded_durations


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
