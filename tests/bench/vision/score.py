"""Scoring an encoder on the tasks of a suite, each under the task's own frozen head."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.bench.vision.demo import Examples, Head, accuracy, from_weights
from tests.support.models import load_model


def task_names(suite: Path) -> list[str]:
    """Return the names of the tasks of a suite, sorted."""
    return sorted(folder.name for folder in (suite / "tasks").iterdir())


def load_weights(model: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a model folder, in float32."""
    tensors = load_model(model) if model.is_dir() else load_file(model)
    return {name: tensor.float() for name, tensor in tensors.items()}


def score(suite: Path, weights: Mapping[str, Tensor], names: Iterable[str] = ()) -> dict[str, Any]:
    """Return the accuracies of an encoder on the tasks that are named, or on all, and what they come to.

    Returns:
      `accuracy`, by task, and its mean `ACC`; `kept`, the share of the gain from base to experts, None where there is
      none; `normalised`, the mean of the accuracies as shares of the experts'.
    """
    encoder = from_weights(weights)
    found: dict[str, float] = {}
    base: list[float] = []
    expert: list[float] = []
    for name in tuple(names) or task_names(suite):
        folder = suite / "tasks" / name
        test = Examples(**load_file(folder / "test.safetensors"))
        found[name] = accuracy(encoder, Head(**load_file(folder / "head.safetensors")), test)
        meta = json.loads((folder / "meta.json").read_text())
        base.append(meta["base_accuracy"])
        expert.append(meta["finetuned_accuracy"])
    gain = fmean(expert) - fmean(base)
    return {
        "accuracy": found,
        "ACC": fmean(found.values()),
        "kept": (fmean(found.values()) - fmean(base)) / gain if gain else None,
        "normalised": fmean(one / best for one, best in zip(found.values(), expert, strict=True)),
    }
