"""A small suite: a base, checkpoints in three forms, and a command that scores models."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.daemon import BIN
from tests.support.models import load_model, make_base, make_checkpoint

TASKS = ("red", "green", "blue")
SCORER = Path(__file__).with_name("agreement.py")


class Suite:
    """Tasks of a small base; `blue` is a model folder, `green` a model file, `red` a file of differences."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.base = make_base(folder / "base")
        self.truth = folder / "truth"
        self.models = {}
        self.truth.mkdir()
        base = {name: tensor for name, tensor in load_model(self.base).items() if tensor.is_floating_point()}
        save_file(base, self.truth / "base.safetensors")
        for number, name in enumerate(TASKS):
            self.models[name] = make_checkpoint(folder / name, self.base, seed=number + 1)
            expert = load_model(folder / name)
            update = {key: expert[key] - tensor for key, tensor in base.items()}
            assert all(torch.is_nonzero(part.abs().sum()) for part in update.values())
            save_file(update, self.truth / f"{name}.safetensors")
        (tasks := folder / "tasks").mkdir()
        (tasks / "blue").symlink_to(self.models["blue"])
        (tasks / "green.safetensors").symlink_to(self.models["green"] / "model.safetensors")
        update = {key: load_model(self.models["red"])[key] - tensor for key, tensor in base.items()}
        save_file(update, tasks / "red.safetensors", metadata={"format": "pt", "foldin.kind": "task_vector"})

    def log(self, out: Path) -> Path:
        """What the command was run for, one line a run."""
        return out.with_suffix(".log")

    def arguments(self, out: Path, *more: str) -> tuple[str, ...]:
        """Of a `foldind evaluate` with two rules and two orders."""
        self.log(out).touch()
        return (
            *("evaluate", "--base", str(self.base), "--tasks", str(self.folder / "tasks"), "--backend", "numpy"),
            *("--rule", "opcm", "--rule", "opcm:alpha=0", "--order", "red,green,blue", "--order", "blue,red,green"),
            *("--command", f"'{sys.executable}' {SCORER} {self.truth} {{model}} {{tasks}} {self.log(out)}"),
            *("--out", str(out), *more),
        )

    def evaluate(self, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        arguments = [BIN / "foldind", *self.arguments(out, *more)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False, env=environment())


def environment() -> dict[str, str]:
    """Of a process whose output is no terminal."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def small_suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return Suite(tmp_path_factory.mktemp("small-suite"))
