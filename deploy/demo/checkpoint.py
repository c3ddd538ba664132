"""Encoders as Hugging Face model folders, and the plain average of several."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from model import Encoder, EncoderConfig
from safetensors.torch import load_file, save_file
from torch import Tensor


def save(encoder: Encoder, folder: Path) -> None:
    """Write config.json and model.safetensors (float32)."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(encoder.config.to_json(), indent=2) + "\n")
    # The metadata is what transformers asks of a file before it loads it.
    save_file(encoder.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path) -> Encoder:
    """Return the encoder that lies in a folder, be it a checkpoint or a snapshot."""
    return from_weights(load_file(folder / "model.safetensors"))


def from_weights(weights: Mapping[str, Tensor]) -> Encoder:
    """Return an encoder of the demo's shape with these weights."""
    encoder = Encoder(EncoderConfig())
    encoder.load_state_dict(weights)
    return encoder


class Average:
    """The mean of all checkpoints so far, the plainest way to merge: what the daemon is compared with."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: dict[str, Tensor] = {}

    def add(self, encoder: Encoder) -> Encoder:
        """Count one more checkpoint, and return the mean of all."""
        self._count += 1
        for name, tensor in encoder.state_dict().items():
            self._sum[name] = self._sum.get(name, torch.zeros_like(tensor)) + tensor
        return from_weights({name: tensor / self._count for name, tensor in self._sum.items()})
