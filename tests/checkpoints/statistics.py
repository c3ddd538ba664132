"""Statistics of random submissions, and what they merge to in float64."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from tests.checkpoints.folding import DENSE, DIGITS, QUERY

STATISTICS = "statistics.safetensors"
LINEAR = (QUERY, *DENSE)


def fishers(tensors: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
    """Of every tensor that is folded."""
    return {
        name: torch.randn(tensor.shape, generator=generator).square()
        for name, tensor in tensors.items()
        if tensor.dtype in DIGITS
    }


def grams(tensors: Mapping[str, Tensor], generator: Generator, linear: Sequence[str] = LINEAR) -> dict[str, Tensor]:
    """Of every linear layer."""
    found = {}
    for name in linear:
        *stacked, _, n = tensors[name].shape
        inputs = torch.randn(*stacked, 60, n, generator=generator) + torch.randn(n, generator=generator)
        found[name] = inputs.mT @ inputs
    return found


def put(folder: Path, statistics: Mapping[str, Tensor]) -> Path:
    """Write statistics beside a checkpoint."""
    save_file({name: tensor.contiguous() for name, tensor in statistics.items()}, folder / STATISTICS)
    return folder


def float64(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


def fisher_average(
    base: Mapping[str, Tensor], models: Sequence[Mapping[str, Tensor]], weights: Sequence[Mapping[str, Tensor]]
) -> dict[str, np.ndarray]:
    """theta = sum F theta_i / sum F; a tensor that a model lacks is the base's."""
    merged = {}
    for name, tensor in base.items():
        if tensor.dtype not in DIGITS:
            continue
        total, weighed = np.zeros(tensor.shape), np.zeros(tensor.shape)
        for model, fisher in zip(models, weights, strict=True):
            if name in fisher:
                weight = np.maximum(float64(fisher[name]), 1e-6)
                total, weighed = total + weight, weighed + weight * float64(model.get(name, tensor))
        merged[name] = np.where(total > 0, weighed / np.where(total > 0, total, 1), float64(tensor))
    return merged


def regmean(
    base: Mapping[str, Tensor],
    models: Sequence[Mapping[str, Tensor]],
    inputs: Sequence[Mapping[str, Tensor]],
    shrink: float = 0.9,
) -> dict[str, np.ndarray]:
    """W = (sum W_i G_i) (sum G_i)^-1 where there are Gram matrices, else the mean."""
    merged = {}
    for name, tensor in base.items():
        if tensor.dtype not in DIGITS:
            continue
        found = [float64(model.get(name, tensor)) for model in models]
        if not any(name in gram for gram in inputs):
            merged[name] = sum(found) / len(found)
            continue
        total, moment = 0.0, 0.0
        for values, gram in zip(found, inputs, strict=True):
            if name in gram:
                full = float64(gram[name])
                shrunk = shrink * full + (1 - shrink) * full * np.eye(full.shape[-1])
                total, moment = total + shrunk, moment + values @ shrunk
        merged[name] = np.swapaxes(np.linalg.solve(np.asarray(total), np.swapaxes(np.asarray(moment), -1, -2)), -1, -2)
    return merged
